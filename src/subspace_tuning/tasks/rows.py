"""A task's rows, and a model's outputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from ..models.load import Processor

Values: TypeAlias = NDArray[np.floating] | NDArray[np.integer]
"""Numbers, with one entry or one row per example."""


Same = TypeVar("Same")


class Rows(Protocol):
    """One split of a task's data."""

    def __len__(self) -> int: ...

    def first(self: Same, count: int) -> Same:
        """Return the first rows."""

    def fingerprint(self) -> str:
        """Return a digest: two splits with the same one have the same rows in the same order."""


class Chosen(Rows, Protocol):
    """Rows that can be selected by number."""

    def select(self: Same, rows: Sequence[int]) -> Same:
        """Return the rows of these numbers."""


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Seen(Generic[R]):
    """A model's outputs for rows.

    Attributes:
        rows: the rows.
        encoded: the result of ``encode`` for them.
        outputs: an entry for each encoded row: the model's outputs, or the result of ``generate``.
        labels: the labels of the encoded rows, if they have any.
        processor: the model's tokenizer or image processor.
    """

    rows: R
    encoded: Dataset
    outputs: Values
    labels: Values | None
    processor: Processor
