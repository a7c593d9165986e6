"""Own files whose rows are one text or two."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .data.records import Records
from .data.tables import Table
from .own import OwnTask
from .rows import Values
from .texts import TextTask


@dataclass(frozen=True)
class OwnTextTask(OwnTask[Table], TextTask):
    """A task on own rows of one text or two.

    Attributes:
        text_pair: the column of a row's second text, if any.
    """

    text_pair: str | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @abstractmethod
    def numbers(self, records: Records, labels: Sequence[Any]) -> Values:
        """Return labels as numbers, an entry per row. Raises SubspaceError if one is unknown."""

    def rows(self, records: Records, labels: Sequence[Any] | None) -> Table:
        """Return records as a table."""
        keys = ("task.text", "task.text_pair")
        texts = tuple(records.texts(name, key) for name, key in zip(self.text_columns, keys, strict=False))
        return Table(texts, None if labels is None else self.numbers(records, labels))
