"""Descriptions of jobs as plain data: their text, their digest, and the first difference between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Description: TypeAlias = Mapping[str, Any]
"""Everything the result of a job depends on, and nothing else: neither its place nor the number of processes."""


def canonical(description: Description) -> str:
    """Return the canonical text of a description: JSON with sorted keys, and sets as sorted lists.

    Raises:
        TypeError: a value is not plain data, so its text might differ between processes.
        ValueError: a number is not finite.
    """
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def digest(description: Description) -> str:
    """Return the digest of a description: 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(description).encode(), digest_size=16).hexdigest()


def difference(before: Description, now: Description, ignoring: Collection[str] = ()) -> str | None:
    """Return the first difference in words, or None if there is none.

    Args:
        before: the old description.
        now: the new one.
        ignoring: keys to ignore; a key within an object is written ``object.key``.
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
    raise TypeError(f"{value!r} is not plain data")
