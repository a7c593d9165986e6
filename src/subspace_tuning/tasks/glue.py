"""The nine GLUE tasks: their columns, splits, labels and metrics.

A task is data: what its rows hold, how a prediction is scored, and the one figure by which runs are compared. Metrics
are the ones of GLUE (Wang et al., 2019; https://gluebenchmark.com): Matthews' correlation for CoLA, Pearson's and
Spearman's for STS-B, accuracy and F1 for MRPC and QQP, accuracy for the others. Two figures of one task are averaged,
as GLUE does.

>>> get("mrpc").primary
'mean'
>>> score(get("rte"), predictions=np.array([1, 0, 1, 1]), labels=np.array([1, 0, 0, 1]))
{'accuracy': 0.75}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ..errors import SubspaceError, nearest

Values: TypeAlias = NDArray[np.floating] | NDArray[np.integer]
"""One value per row: class numbers, or scores where the task is a regression."""
Metric: TypeAlias = Callable[[Values, Values], dict[str, float]]
"""Predictions and labels to figures by name."""


def _accuracy(predictions: Values, labels: Values) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(labels, predictions))}


def _accuracy_and_f1(predictions: Values, labels: Values) -> dict[str, float]:
    accuracy = float(accuracy_score(labels, predictions))
    f1 = float(f1_score(labels, predictions, zero_division=0.0))
    return {"accuracy": accuracy, "f1": f1, "mean": (accuracy + f1) / 2}


def _matthews(predictions: Values, labels: Values) -> dict[str, float]:
    return {
        "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
        "accuracy": float(accuracy_score(labels, predictions)),
    }


def _correlations(predictions: Values, labels: Values) -> dict[str, float]:
    # Of a constant a correlation is undefined; it has learnt nothing about the order, which is a correlation of zero.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return {"pearson": 0.0, "spearman": 0.0, "mean": 0.0}
    pearson = float(stats.pearsonr(predictions, labels).statistic)
    spearman = float(stats.spearmanr(predictions, labels).statistic)
    return {"pearson": pearson, "spearman": spearman, "mean": (pearson + spearman) / 2}


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: the hub's name of the configuration, lower case.
        columns: the text columns, one or two, in the order in which the tokenizer gets them.
        labels: the classes' names in the order of their numbers; empty for a regression.
        metric: the figures of a prediction.
        primary: the name of the figure by which runs are compared, among those of the first evaluation split.
        evaluation: the splits scored during training, each with the prefix that its figures get.
        bounds: the smallest and largest label of a regression, None for a classification.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: Metric = _accuracy
    primary: str = "accuracy"
    evaluation: tuple[tuple[str, str], ...] = (("", "validation"),)
    bounds: tuple[float, float] | None = None

    @property
    def regression(self) -> bool:
        """Whether a label is a number on a scale rather than a class."""
        return self.bounds is not None

    @property
    def outputs(self) -> int:
        """How many values the head gives per row: one per class, or one score."""
        return 1 if self.regression else len(self.labels)

    @property
    def primary_key(self) -> str:
        """The primary figure's name with its split's prefix, as in `evaluate`'s result."""
        return prefixed(self.evaluation[0][0], self.primary)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that a run reads."""
        return ("train", *(split for _, split in self.evaluation))


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("cola", ("sentence",), ("unacceptable", "acceptable"), _matthews, "matthews_correlation"),
            Task("sst2", ("sentence",), ("negative", "positive")),
            Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), _accuracy_and_f1, "mean"),
            Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), _accuracy_and_f1, "mean"),
            Task("stsb", _PAIR, (), _correlations, "mean", bounds=(0.0, 5.0)),
            Task(
                "mnli",
                ("premise", "hypothesis"),
                ("entailment", "neutral", "contradiction"),
                evaluation=(("matched", "validation_matched"), ("mismatched", "validation_mismatched")),
            ),
            Task("qnli", ("question", "sentence"), _ENTAILMENT),
            Task("rte", _PAIR, _ENTAILMENT),
            Task("wnli", _PAIR, ("not_entailment", "entailment")),
        )
    }
)


def get(name: str) -> Task:
    """The task of that name, in any case and with or without hyphens ("STS-B" is "stsb").

    Raises:
        SubspaceError: no task has that name; the nearest names are told.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in TASKS:
        raise SubspaceError(f"unknown task {name!r}: {nearest(plain, TASKS)}")
    return TASKS[plain]


def prefixed(prefix: str, name: str) -> str:
    """A figure's name under its split's prefix; an empty prefix leaves it alone."""
    return f"{prefix}_{name}" if prefix else name


def predict(task: Task, logits: NDArray[np.floating]) -> Values:
    """The model's outputs, rows x `task.outputs`, as one class or one score per row."""
    rows = logits.reshape(-1, task.outputs)
    if task.regression:
        return rows[:, 0]
    return np.asarray(rows.argmax(axis=1))


def score(task: Task, predictions: Values, labels: Values) -> dict[str, float]:
    """The task's figures, between -1 and 1 (fractions, not per cent), for one prediction and one label per row."""
    return task.metric(predictions, labels)


def baseline(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
    """The figures, on `labels`, of a constant: the most frequent class of `train_labels`, or their mean."""
    if task.regression:
        constant = np.full(len(labels), float(np.mean(train_labels)))
        return score(task, constant, labels)
    majority = np.bincount(np.asarray(train_labels, dtype=np.int64)).argmax()
    return score(task, np.full(len(labels), majority), labels)
