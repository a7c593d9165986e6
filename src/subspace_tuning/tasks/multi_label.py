"""Any number of classes per row, from own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from ..errors import SubspaceError
from .classes import ClassesTask, class_name
from .data.records import Records, as_list
from .data.tables import Table
from .intervals import Figure, f1
from .own_texts import OwnTextTask
from .registry import register
from .rows import Seen, Values


@dataclass(frozen=True)
class MultiLabel(ClassesTask[Table], OwnTextTask):
    """Any number of classes per row, each decided independently.

    Attributes:
        separator: the separator between the classes of a row that are one text.
    """

    name = "multi_label"
    primary = "f1_micro"
    problem_type = "multi_label_classification"

    separator: str = ","

    def configured(self, options: Mapping[str, Any]) -> MultiLabel:
        """Return the task with these options."""
        if options.get("separator") == "":
            raise SubspaceError("task.separator is empty: give the separator between the labels of a row")
        return cast("MultiLabel", super().configured(options))

    @property
    def label_type(self) -> DTypeLike:
        """The data type of the outputs."""
        return np.float32

    def criterion(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the mean loss of all decisions, where rows that have a class count with its weight."""
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)

    def raw_labels(self, records: Records) -> list[list[str]]:
        """Return the names of each row's classes."""
        found = []
        for row, value in enumerate(records.column(self.label, "task.label")):
            names = as_list(value, self.separator)
            if names is None:
                records.refuse(
                    [row], f"column {self.label!r} has no list of labels", "write [] for none, or remove the row"
                )
            found.append([class_name(name) for name in names])
        return found

    def weights_of(self, records: Records, labels: list[list[str]]) -> tuple[float, ...]:
        """Return for each class the ratio of rows without it to rows with it; 1 if no row has it."""
        having = self.numbers(records, labels).sum(axis=0)
        weights = (len(labels) - having) / np.maximum(having, 1)
        return tuple(np.where(having > 0, weights, 1.0).tolist())

    def numbers(self, records: Records, labels: Sequence[Sequence[str]]) -> Values:
        """Return a 1 for each class that a row has, rows x classes."""
        found = np.zeros((len(labels), len(self.names)))
        for row, numbers in enumerate(self.numbers_of(records, labels)):
            found[row, numbers] = 1.0
        return found

    def predict(self, outputs: Values) -> Values:
        """Return a 1 for each class that is more probable than not, rows x classes."""
        return (outputs.reshape(-1, len(self.names)) > 0).astype(np.int64)

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return F1 over all decisions, the mean of the classes' F1, and the share of rows without an error."""
        return {
            "f1_micro": float(f1_score(labels, predictions, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
            "exact_match": float(accuracy_score(labels, predictions)),
        }

    def resampled(self, predictions: Values, labels: Values) -> Figure:
        """Return F1 over all decisions of rows."""
        hits, claims = (predictions * labels).sum(axis=1), (predictions + labels).sum(axis=1)
        return lambda rows: float(f1(hits[rows].sum(), claims[rows].sum()))

    def answers(self, seen: Seen[Table]) -> list[dict[str, Any]]:
        """Return each row's texts with its classes and the probability of each."""
        chances = expit(seen.outputs)
        answers = [
            {
                "predicted": [name for name, has in zip(self.names, row, strict=True) if has],
                "probabilities": dict(zip(self.names, map(float, chance), strict=True)),
            }
            for row, chance in zip(self.predict(seen.outputs), chances, strict=True)
        ]
        return self.beside_texts(seen.rows, answers)

    def baseline(self, train: Table, rows: Table) -> dict[str, float]:
        """Return the figures of the classes that most training rows have."""
        constant = train.known.mean(axis=0) > 0.5
        return self.score(np.tile(constant.astype(np.int64), (len(rows), 1)), rows.known)


register(MultiLabel())
