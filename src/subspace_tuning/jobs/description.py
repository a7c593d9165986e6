"""What a job is, as plain data: equal ones have one text and one digest, unlike ones a difference in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Description: TypeAlias = Mapping[str, Any]
"""All that the result of a job depends on, and nothing else: not where it is written, nor how many processes work."""


def canonical(description: Description) -> str:
    """Return the text that equal descriptions share: JSON with sorted keys, in which sets are sorted lists.

    Raises:
        TypeError: a value is no plain data; its text might differ from process to process.
        ValueError: a number is not finite.
    """
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def digest(description: Description) -> str:
    """Return the name of a job that its description alone decides: 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(description).encode(), digest_size=16).hexdigest()


def difference(before: Description, now: Description, ignoring: Collection[str] = ()) -> str | None:
    """Return the first value that differs, in words, None if all are equal.

    Args:
        before: a description as it was.
        now: as it is.
        ignoring: keys that do not count; a key within an object is written ``object.key``.
    """
    old, new = (_flat(json.loads(canonical(one))) for one in (before, now))
    for key in sorted((old.keys() | new.keys()) - set(ignoring)):
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} now"
    return None


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: object) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is no plain data")
