"""Own rows, each of one class, whatever the rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from .classes import ClassesTask, balanced, class_name
from .data.records import Records, shown
from .intervals import Figure
from .own import labelled
from .rows import Chosen, Values


class Known(Chosen, Protocol):
    """Rows with labels."""

    @property
    def known(self) -> Values:
        """The number of each row's class."""


K = TypeVar("K", bound=Known)


@dataclass(frozen=True)
class OneClassTask(ClassesTask[K]):
    """One of several classes per row."""

    primary = "accuracy"
    problem_type = "single_label_classification"

    def raw_labels(self, records: Records) -> list[str]:
        """Return the names of the rows' classes."""
        values = labelled(records, self.label)
        if several := [row for row, value in enumerate(values) if not isinstance(value, (str, bool, int, float))]:
            reason = f"column {self.label!r} is {shown(values[several[0]])}, which is not one class"
            records.refuse(several, reason, "use task.name=multi_label for several")
        return [class_name(value) for value in values]

    def weights_of(self, records: Records, labels: list[str]) -> tuple[float, ...]:
        """Return the inverse of each class's share of the rows."""
        return balanced(self.numbers(records, labels), len(self.names))

    def numbers(self, records: Records, labels: Sequence[str]) -> Values:
        """Return the numbers of the rows' classes."""
        return np.array(self.numbers_of(records, [[name] for name in labels]), dtype=np.int64).reshape(-1)

    def predict(self, outputs: Values) -> Values:
        """Return one class number per row."""
        return np.asarray(outputs.reshape(-1, len(self.names)).argmax(axis=1))

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the accuracy, the mean of the classes' F1, and Matthews' correlation."""
        known = np.unique(labels)
        return {
            "accuracy": float(accuracy_score(labels, predictions)),
            "f1_macro": float(f1_score(labels, predictions, labels=known, average="macro", zero_division=0.0)),
            "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
        }

    def resampled(self, predictions: Values, labels: Values) -> Figure:
        """Return the accuracy of rows."""
        right = predictions == labels
        return lambda rows: float(right[rows].mean())

    def baseline(self, train: K, rows: K) -> dict[str, float]:
        """Return the figures of the most frequent class of the training rows."""
        return self.score(np.full(len(rows), np.bincount(train.known).argmax()), rows.known)
