"""The base of tasks on own files: their options, sources and splits."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import SubspaceError
from .base import Task
from .data import sources
from .data.records import Records, is_missing, shown
from .holding_out import parted
from .rows import Chosen

HELD_OUT = 0.2
"""The default share of rows held out."""
_NO_DATA = "glue"  # the default of `task.data`


R = TypeVar("R", bound=Chosen)


@dataclass(frozen=True)
class OwnTask(Task[R]):
    """A task on own rows. The fields are the options of a config's ``task`` section.

    Attributes:
        text: the column of the text.
        label: the column of the label.
        validation: a separate source of validation rows.
        held_out: the share of the training rows held out for validation if there are no validation rows.
        held_out_seed: the seed with which these are drawn.
    """

    text: str = "text"
    label: str = "label"
    validation: str | None = None
    held_out: float | None = None
    held_out_seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        given = {field.name: getattr(self, field.name) for field in self._own()}
        defaults = {field.name: field.default for field in self._own()}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return {name: value for name, value in plain.items() if given[name] != defaults[name]}

    def configured(self, options: Mapping[str, Any]) -> OwnTask[R]:
        """Return the task with these options."""
        known = {field.name for field in self._own()}
        super().configured({name: value for name, value in options.items() if name not in known})
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        hints = get_type_hints(type(self))
        for name, value in given.items():
            if not _fits(value, hints[name]):
                raise SubspaceError(f"task.{name} is {shown(value)}, which task {self.name} cannot take")
        made = replace(self, **given)
        if made.validation is not None and made.held_out is not None:
            raise SubspaceError("task.validation and task.held_out are both given: leave one out")
        return made

    def _own(self) -> list[dataclasses.Field[Any]]:
        """Return the fields that are options."""
        return [field for field in dataclasses.fields(self) if field.metadata.get("option", True)]

    def unfolded(self, records: Records) -> Records:
        """Return the records with one entry per row of the task; by default they are unchanged."""
        return records

    def records_of(self, source: str) -> dict[str, Records]:
        """Return the rows of a source by split. Raises SubspaceError if it cannot be found or read."""
        return sources.splits(source)

    @abstractmethod
    def raw_labels(self, records: Records) -> list[Any]:
        """Return the labels of records as the task reads them, before they are looked up in a list of classes."""

    @abstractmethod
    def settled(self, records: Records, labels: list[Any]) -> OwnTask[R]:
        """Return the task with everything that is derived from the labels of its training file."""

    @abstractmethod
    def rows(self, records: Records, labels: list[Any] | None) -> R:
        """Return records as rows. Raises SubspaceError if one cannot be used."""

    def load(self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None) -> dict[str, R]:
        """Return the training and the validation rows."""
        return self.prepare(source, train_rows=train_rows, eval_rows=eval_rows)[1]

    def prepare(
        self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None
    ) -> tuple[OwnTask[R], dict[str, R]]:
        """Return the task with its classes, and the training and the validation rows."""
        found = {split: self.unfolded(records) for split, records in self._splits(source).items()}
        labels = self.raw_labels(found["train"])
        task = self.settled(found["train"], labels)
        train = task.rows(found["train"], labels)
        if "validation" in found:
            validation = task.rows(found["validation"], task.raw_labels(found["validation"]))
        else:
            train, validation = self._parted(train, found["train"].where)
        limits = {"train": train_rows, "validation": eval_rows}
        rows = {"train": train, "validation": validation}
        return task, {
            split: part if (limit := limits[split]) is None else part.first(limit) for split, part in rows.items()
        }

    def _splits(self, source: str) -> dict[str, Records]:
        if source == _NO_DATA and not Path(source).exists():
            raise SubspaceError(f"task {self.name} needs task.data: a file, a folder, or a data set's name on the hub")
        found = self.records_of(source)
        if "train" not in found:
            raise SubspaceError(f"data {source!r} has no training rows: it has {', '.join(found)}")
        if self.validation is not None:
            found["validation"] = sources.one(self.records_of(self.validation))
        elif "validation" in found and self.held_out is not None:
            raise SubspaceError(f"data {source!r} already has validation rows: leave task.held_out out")
        return found

    def _parted(self, rows: R, where: str) -> tuple[R, R]:
        share = HELD_OUT if self.held_out is None else self.held_out
        return parted(
            rows,
            self.groups(rows),
            share,
            self.held_out_seed,
            where,
            "validate with",
            "give more rows, or task.validation",
        )

    def read(self, source: str, *, labelled: bool = True) -> R:
        """Return the rows of a file, a folder or a data set; if there are several splits, those of the test split."""
        records = self.unfolded(sources.one(self.records_of(source)))
        return self.rows(records, self.raw_labels(records) if labelled else None)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has an annotated type: a plain one, a tuple of one, or a union."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if origin is not None:
        return any(_fits(value, one) for one in inner)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def labelled(records: Records, column: str) -> Sequence[Any]:
    """Return the column of the labels. Raises SubspaceError if there is none, or a row has none."""
    values = records.column(column, "task.label")
    if missing := [row for row, value in enumerate(values) if is_missing(value)]:
        records.refuse(missing, f"column {column!r} has no label", "write one, or remove the row")
    return values
