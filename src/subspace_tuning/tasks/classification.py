"""One class per row, from a person's own files.

Examples:
    >>> task = Classification(classes=("bad", "good"))
    >>> task.score(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))["accuracy"]
    0.75
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from ..tuner.calibration import Batch
from .base import Values
from .data.records import Records, shown
from .data.tables import Table
from .own import by_number, class_list, class_name, labelled, numbered
from .own_texts import OwnTextTask
from .registry import register
from .texts import by_class


@dataclass(frozen=True)
class Classification(OwnTextTask):
    """One of several classes per row.

    Attributes:
        classes: their names in the order of their numbers; those of the training file, sorted, if not given.
        class_weights: whether a class counts in the loss the more, the rarer it is.
        weights: how much each class counts then.
    """

    name = "classification"
    primary = "accuracy"

    classes: tuple[str, ...] | None = None
    class_weights: bool = False
    weights: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, once they are known."""
        assert self.classes is not None
        return self.classes

    @property
    def model_settings(self) -> dict[str, Any]:
        """The head's size, its classes and the kind of loss."""
        return {**by_number(self.names), "problem_type": "single_label_classification"}

    @property
    def loss(self) -> Callable[[nn.Module, Batch], tuple[Tensor, Any]] | None:  # type: ignore[override]
        """The cross-entropy of the weighted classes; the model's own without weights."""
        return weighted_loss(self.weights) if self.class_weights else None

    def raw_labels(self, records: Records) -> list[str]:
        """Return the names of the rows' classes."""
        values = labelled(records, self.label)
        if several := [row for row, value in enumerate(values) if not isinstance(value, (str, bool, int, float))]:
            told = f"column {self.label!r} is {shown(values[several[0]])}, which is not one class"
            records.refuse(several, told, "take task.name=multi_label for several")
        return [class_name(value) for value in values]

    def settled(self, records: Records, labels: list[str]) -> Classification:
        """Return the task with its classes, and with their weights if they shall have any."""
        classes = class_list(self.classes, labels, records, self.label)
        numbers = numbered(records, self.label, labels, classes)
        weights = balanced(numbers, len(classes)) if self.class_weights else ()
        return replace(self, classes=classes, weights=weights)

    def numbers(self, records: Records, labels: Sequence[str]) -> Values:
        """Return the numbers of the rows' classes."""
        return numbered(records, self.label, labels, self.names)

    def predict(self, outputs: Values) -> Values:
        """Return the number of one class per row."""
        return np.asarray(outputs.reshape(-1, len(self.names)).argmax(axis=1))

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the accuracy, the mean of the classes' F1, and Matthews' correlation."""
        known = np.unique(labels)
        return {
            "accuracy": float(accuracy_score(labels, predictions)),
            "f1_macro": float(f1_score(labels, predictions, labels=known, average="macro", zero_division=0.0)),
            "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
        }

    def answers(self, rows: Table, encoded: Dataset, outputs: Values) -> list[dict[str, Any]]:
        """Return each row's texts with its class and the probabilities of all."""
        return self.beside_texts(rows, by_class(outputs, self.names))

    def baseline(self, train: Table, rows: Table) -> dict[str, float]:
        """Return the figures of the most frequent class of the training rows."""
        return self.score(np.full(len(rows), np.bincount(train.known).argmax()), rows.known)


def balanced(numbers: Values, count: int) -> tuple[float, ...]:
    """Return a weight for each of ``count`` classes, the inverse of its share; 1 for one that does not occur."""
    present = np.unique(numbers)
    weights = np.ones(count)
    weights[present] = compute_class_weight("balanced", classes=present, y=numbers)
    return tuple(weights.tolist())


def weighted_loss(weights: Sequence[float]) -> Callable[[nn.Module, Batch], tuple[Tensor, Any]]:
    """Return the cross-entropy in which each class has a weight, of models whose last axis is the classes."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        logits, labels = outputs.logits.float().flatten(0, -2), batch["labels"].flatten()
        weight = torch.tensor(weights, device=logits.device)
        return nn.functional.cross_entropy(logits, labels, weight), outputs

    return loss


register(Classification())
