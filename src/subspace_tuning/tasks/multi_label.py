"""Any number of classes per row, from a person's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import DTypeLike
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from ..errors import SubspaceError
from ..tuner.calibration import Batch
from .base import Values
from .data.records import Records, as_list
from .data.tables import Table
from .own import OwnTask, by_number, class_list, class_name, unknown
from .own_texts import OwnTextTask
from .registry import register


@dataclass(frozen=True)
class MultiLabel(OwnTextTask):
    """Any number of classes per row, each of which is decided by itself.

    Attributes:
        separator: what stands between the classes of a row where they are one text.
        classes: their names in the order of their numbers; those of the training file, sorted, if not given.
        class_weights: whether the rows that have a class count in its loss the more, the fewer they are.
        weights: how much they count then.
    """

    name = "multi_label"
    primary = "f1_micro"

    separator: str = ","
    classes: tuple[str, ...] | None = None
    class_weights: bool = False
    weights: tuple[float, ...] = ()

    def configured(self, options: Mapping[str, Any]) -> OwnTask[Table]:
        """Return the task with these options."""
        if options.get("separator") == "":
            raise SubspaceError("task.separator is empty: give what stands between the labels of a row")
        return super().configured(options)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, once they are known."""
        assert self.classes is not None
        return self.classes

    @property
    def model_settings(self) -> dict[str, Any]:
        """The head's size, its classes and the kind of loss."""
        return {**by_number(self.names), "problem_type": "multi_label_classification"}

    @property
    def label_type(self) -> DTypeLike:
        """The type of the outputs."""
        return np.float32

    @property
    def loss(self) -> Callable[[nn.Module, Batch], tuple[Tensor, Any]] | None:  # type: ignore[override]
        """The sum of the weighted classes' losses; the model's own without weights."""
        return self._weighted if self.class_weights else None

    def _weighted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        logits = outputs.logits.float()
        weight = torch.tensor(self.weights, device=logits.device)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"], pos_weight=weight), outputs

    def raw_labels(self, records: Records) -> list[list[str]]:
        """Return the names of each row's classes."""
        found = []
        for row, value in enumerate(records.column(self.label, "task.label")):
            names = as_list(value, self.separator)
            if names is None:
                records.refuse(
                    [row], f"column {self.label!r} has no list of labels", "write [] for none, or take the row away"
                )
            found.append([class_name(name) for name in names])
        return found

    def settled(self, records: Records, labels: list[list[str]]) -> MultiLabel:
        """Return the task with its classes, and with their weights if they shall have any."""
        every = [name for names in labels for name in names]
        task = replace(self, classes=class_list(self.classes, every, records, self.label))
        if not self.class_weights:
            return task
        having = task.numbers(records, labels).sum(axis=0)
        weights = (len(labels) - having) / np.maximum(having, 1)
        return replace(task, weights=tuple(np.where(having > 0, weights, 1.0).tolist()))

    def numbers(self, records: Records, labels: Sequence[Sequence[str]]) -> Values:
        """Return a 1 for each class that a row has, rows x classes."""
        known = {name: number for number, name in enumerate(self.names)}
        found = np.zeros((len(labels), len(self.names)))
        for row, names in enumerate(labels):
            for name in names:
                if name not in known:
                    records.refuse([row], *unknown(name, self.label, self.names))
                found[row, known[name]] = 1.0
        return found

    def predict(self, outputs: Values) -> Values:
        """Return a 1 for each class that is more probable than not, rows x classes."""
        return (outputs.reshape(-1, len(self.names)) > 0).astype(np.int64)

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return F1 over all decisions, the mean of the classes' F1, and the share of rows that are wholly right."""
        return {
            "f1_micro": float(f1_score(labels, predictions, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
            "exact_match": float(accuracy_score(labels, predictions)),
        }

    def answers(self, rows: Table, encoded: Dataset, outputs: Values) -> list[dict[str, Any]]:
        """Return each row's texts with its classes and the probability of each."""
        chances = expit(outputs)
        answers = [
            {
                "predicted": [name for name, has in zip(self.names, row, strict=True) if has],
                "probabilities": dict(zip(self.names, map(float, chance), strict=True)),
            }
            for row, chance in zip(self.predict(outputs), chances, strict=True)
        ]
        return self.beside_texts(rows, answers)

    def baseline(self, train: Table, rows: Table) -> dict[str, float]:
        """Return the figures of the classes that most training rows have."""
        constant = train.known.mean(axis=0) > 0.5
        return self.score(np.tile(constant.astype(np.int64), (len(rows), 1)), rows.known)


register(MultiLabel())
