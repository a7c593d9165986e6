"""The base of tasks on own files whose labels are names of classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from ..errors import SubspaceError, nearest
from ..tuner.calibration import Batch
from .data.records import Records
from .own import OwnTask, R
from .rows import Values


@dataclass(frozen=True)
class ClassesTask(OwnTask[R]):
    """A task with a list of classes.

    Attributes:
        classes: their names in the order of their numbers; by default those of the training file, sorted.
        class_weights: whether rarer classes get more weight in the loss.
        weights: the weight of each class, if so.
        problem_type: transformers' name for the type of loss; None if the model has only one.
    """

    problem_type: ClassVar[str | None] = None

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
        """The head's size, its classes and the type of loss."""
        kind = {} if self.problem_type is None else {"problem_type": self.problem_type}
        return by_number(self.names) | kind

    @property
    def loss(self) -> Callable[[nn.Module, Batch], tuple[Tensor, Any]] | None:  # type: ignore[override]
        """The loss with class weights, or the model's own without them."""
        return self._weighted if self.class_weights else None

    def _weighted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        logits = outputs.logits.float()
        return self.criterion(logits, batch["labels"], torch.tensor(self.weights, device=logits.device)), outputs

    def criterion(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the cross-entropy with a weight for each class, the last axis of the logits."""
        return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), weights)

    def settled(self, records: Records, labels: list[Any]) -> ClassesTask[R]:
        """Return the task with its classes, and with their weights if there are any."""
        every = [name for one in labels for name in ([one] if isinstance(one, str) else one)]
        task = replace(self, classes=class_list(self.classes, every, records, self.label))
        return replace(task, weights=task.weights_of(records, labels)) if self.class_weights else task

    @abstractmethod
    def weights_of(self, records: Records, labels: list[Any]) -> tuple[float, ...]:
        """Return a weight for each class from its frequency."""

    def numbers_of(self, records: Records, labels: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the numbers of each row's classes. Raises SubspaceError if a name is not one of the classes."""
        known = {name: number for number, name in enumerate(self.names)}
        for row, names in enumerate(labels):
            for name in names:
                if name not in known:
                    reason = f"column {self.label!r} has {name!r}, which is not one of the {len(known)} classes"
                    records.refuse([row], reason, nearest(name, self.names))
        return [[known[name] for name in names] for names in labels]


def class_name(value: str | float | bool) -> str:
    """Return a label as the name of a class, without surrounding white space."""
    return str(value).strip()


def class_list(given: Sequence[str] | None, names: Sequence[str], records: Records, column: str) -> tuple[str, ...]:
    """Return the classes in the order of their numbers: those given, or the names that occur, sorted.

    Raises:
        SubspaceError: there are fewer than two, one is repeated, or there are too many to be classes.
    """
    classes = tuple(sorted(set(names))) if given is None else tuple(map(class_name, given))
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise SubspaceError(f"task.classes has {twice[0]!r} twice")
    if len(classes) < 2:
        raise SubspaceError(
            f"{records.where}, column {column!r}: a task needs two classes, and this one has "
            f"{', '.join(map(repr, classes)) or 'none'}"
        )
    if given is None and len(classes) > max(50, len(names) / 2):
        raise SubspaceError(
            f"{records.where}, column {column!r} has {len(classes):,} different labels in {len(names):,} rows: name "
            "another column as task.label, use task.name=regression for numbers, or list the classes in task.classes"
        )
    return classes


def by_number(classes: Sequence[str]) -> dict[str, Any]:
    """Return transformers' settings for the class names."""
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def balanced(numbers: Values, count: int) -> tuple[float, ...]:
    """Return a weight for each of ``count`` classes: the inverse of its share, or 1 if it does not occur."""
    present = np.unique(numbers)
    weights = np.ones(count)
    weights[present] = compute_class_weight("balanced", classes=present, y=numbers)
    return tuple(weights.tolist())
