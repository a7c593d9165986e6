"""JSON files that hold one object, checked for the fields it must have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import reading

Fields: TypeAlias = Mapping[str, Any]
"""The required fields by name: a type, a tuple of allowed values, or the fields of a nested object."""

_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    list: "a list",
    dict: "an object",
}


def read_object(path: Path, hint: str, fields: Fields | None = None) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Raises:
        SubspaceError: the file is damaged or lacks one of the fields; the message ends with the hint.
    """
    if not path.exists():
        return None
    with reading(str(path), hint):
        content = json.loads(path.read_text(encoding="utf-8"))
        check_fields(content, fields or {})
    return dict(content)


def check_fields(content: object, fields: Fields, prefix: str = "") -> None:
    """Raise ValueError if one of the fields is missing or has a value of another type.

    A float field may hold a whole number; neither float nor int fields may hold a boolean. Other fields are ignored.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{prefix.removesuffix('.') or 'it'} is not an object")
    for name, wanted in fields.items():
        if name not in content:
            raise ValueError(f"{prefix}{name} is missing")
        value = content[name]
        if isinstance(wanted, Mapping):
            check_fields(value, wanted, f"{prefix}{name}.")
        elif isinstance(wanted, tuple):
            if value not in wanted:
                raise ValueError(f"{prefix}{name} is not one of {', '.join(map(str, wanted))}")
        elif not _is(value, wanted):
            raise ValueError(f"{prefix}{name} is not {_NAMES[wanted]}")


def _is(value: object, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
