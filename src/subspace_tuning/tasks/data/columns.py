"""What every split of a task's data has in common: how many rows there are, the first of them, a choice of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..rows import Values

Same = TypeVar("Same", bound="Columns")


@dataclass(frozen=True)
class Columns:
    """Rows by columns: the base of a frozen dataclass whose fields are columns.

    A column is a tuple or an array with an entry per row. Any other field holds for all rows.
    """

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))

    def first(self: Same, count: int) -> Same:
        """Return the first rows."""
        return self.select(range(min(count, len(self))))

    def select(self: Same, rows: Sequence[int]) -> Same:
        """Return the rows of these numbers."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: picked(value, rows) for name, value in fields.items()})


def picked(column: Any, rows: Sequence[int]) -> Any:
    """Return the entries of a column in these rows; unchanged if it is not a column."""
    match column:
        case np.ndarray():
            return column[list(rows)]
        case tuple():
            return tuple(column[row] for row in rows)
    return column


def digest_of(content: Any, labels: Values | None = None) -> str:
    """Return the SHA-256 of bytes, or of what JSON can hold, and of the labels if there are any."""
    digest = hashlib.sha256(content if isinstance(content, bytes) else json.dumps(content).encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype=np.float64).tobytes())
    return digest.hexdigest()
