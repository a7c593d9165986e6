"""The nine GLUE tasks: their columns, splits, labels and metrics.

Metrics are the ones of GLUE (Wang et al., 2019; https://gluebenchmark.com): Matthews' correlation for CoLA, Pearson's
and Spearman's for STS-B, accuracy and F1 for MRPC and QQP, accuracy for the others. Two figures of one task are
averaged, as GLUE does.

Examples:
    >>> TASKS["mrpc"].primary
    'mean'
    >>> TASKS["rte"].score(predictions=np.array([1, 0, 1, 1]), labels=np.array([1, 0, 0, 1]))
    {'accuracy': 0.75}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike
from scipy.stats import rankdata

from .data import tables
from .data.tables import Table
from .intervals import f1
from .registry import register
from .rows import Seen, Values
from .texts import TextTask, by_class

Metric: TypeAlias = Callable[[Values, Values], dict[str, float]]
"""A function of predictions and labels that returns figures by name."""


# An interval has a thousand samples scored, so these do without the checks of scikit-learn and scipy.


def _accuracy(predictions: Values, labels: Values) -> dict[str, float]:
    return {"accuracy": float((predictions == labels).mean())}


def _accuracy_and_f1(predictions: Values, labels: Values) -> dict[str, float]:
    accuracy = _accuracy(predictions, labels)["accuracy"]
    of_class = float(f1((predictions * labels).sum(), (predictions + labels).sum()))
    return {"accuracy": accuracy, "f1": of_class, "mean": (accuracy + of_class) / 2}


def _matthews(predictions: Values, labels: Values) -> dict[str, float]:
    # Of two classes, Matthews' correlation is Pearson's of their numbers.
    return {"matthews_correlation": _pearson(predictions, labels), **_accuracy(predictions, labels)}


def _correlations(predictions: Values, labels: Values) -> dict[str, float]:
    pearson = _pearson(predictions, labels)
    spearman = _pearson(rankdata(predictions), rankdata(labels))
    return {"pearson": pearson, "spearman": spearman, "mean": (pearson + spearman) / 2}


def _pearson(predictions: Values, labels: Values) -> float:
    # The correlation with a constant is undefined; it predicts nothing about the order, so it counts as zero.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


_PAPER: Mapping[str, tuple[float, int]] = MappingProxyType(
    {
        "mnli": (5e-4, 7),
        "rte": (1.2e-3, 50),
        "qnli": (1.2e-3, 5),
        "mrpc": (1e-3, 30),
        "qqp": (5e-4, 5),
        "sst2": (8e-4, 24),
        "cola": (5e-4, 25),
        "stsb": (2.2e-3, 25),
    }
)
"""Learning rates and epochs of arXiv 2407.05417, Table VI."""


@dataclass(frozen=True)
class GlueTask(TextTask):
    """One GLUE task: one or two texts in, a class or a score out.

    Attributes:
        name: the hub's name of the configuration, lower case.
        columns: the text columns, one or two, in the tokenizer's order.
        labels: the class names in the order of their numbers; empty for a regression.
        metric: the figures of a prediction, as fractions, not per cent.
        primary: the figure by which runs are compared.
        evaluation: the splits scored during training, each with the prefix of its figures.
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
    def text_columns(self) -> tuple[str, ...]:
        """The columns of the texts."""
        return self.columns

    @property
    def label_type(self) -> DTypeLike:
        """Whole numbers for classes, and float32 for a score."""
        return np.float32 if self.regression else np.int64

    @property
    def preset(self) -> Mapping[str, Any]:
        """The learning rate, the epochs and the rows per step of the paper's Table VI, which leaves out WNLI."""
        if self.name not in _PAPER:
            return {}
        learning_rate, epochs = _PAPER[self.name]
        return {"learning_rate": learning_rate, "epochs": epochs, "batch_size": 32}

    @property
    def outputs(self) -> int:
        """The number of values that the head returns per row: one per class, or one score."""
        return 1 if self.regression else len(self.labels)

    @property
    def model_settings(self) -> dict[str, Any]:
        """The head's size, its classes and the type of loss."""
        names = self.labels or ("score",)
        return {
            "num_labels": self.outputs,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "regression" if self.regression else "single_label_classification",
        }

    def load(self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None) -> dict[str, Table]:
        """Return the splits from a folder, or from the hub's GLUE if ``source`` is "glue" (see ``data.tables``)."""
        return tables.load(self, source, train_rows=train_rows, eval_rows=eval_rows)

    def read(self, source: str, *, labelled: bool = True) -> Table:
        """Return the rows of a file with the hub's columns."""
        return tables.load_file(self, source, labelled=labelled)

    def predict(self, outputs: Values) -> Values:
        """Return one class or one score per row from logits, rows x ``outputs``."""
        rows = outputs.reshape(-1, self.outputs)
        return rows[:, 0] if self.regression else np.asarray(rows.argmax(axis=1))

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the figures, between -1 and 1, for one prediction and one label per row."""
        return self.metric(predictions, labels)

    def answers(self, seen: Seen[Table]) -> list[dict[str, Any]]:
        """Return each row's texts with its class and the probabilities of all, or with its score."""
        if self.regression:
            return self.beside_texts(seen.rows, [{"predicted": float(score)} for score in self.predict(seen.outputs)])
        return self.beside_texts(seen.rows, by_class(seen.outputs, self.labels))

    def baseline(self, train: Table, rows: Table) -> dict[str, float]:
        """Return the figures of a constant: the most frequent class of the training labels, or their mean."""
        if self.regression:
            constant: Values = np.full(len(rows), float(np.mean(train.known)))
        else:
            constant = np.full(len(rows), np.bincount(np.asarray(train.known, dtype=np.int64)).argmax())
        return self.score(constant, rows.known)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: Mapping[str, GlueTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), _matthews, "matthews_correlation"),
            GlueTask("sst2", ("sentence",), ("negative", "positive")),
            GlueTask("mrpc", _PAIR, ("not_equivalent", "equivalent"), _accuracy_and_f1, "mean"),
            GlueTask("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), _accuracy_and_f1, "mean"),
            GlueTask("stsb", _PAIR, (), _correlations, "mean", bounds=(0.0, 5.0)),
            GlueTask(
                "mnli",
                ("premise", "hypothesis"),
                ("entailment", "neutral", "contradiction"),
                evaluation=(("matched", "validation_matched"), ("mismatched", "validation_mismatched")),
            ),
            GlueTask("qnli", ("question", "sentence"), _ENTAILMENT),
            GlueTask("rte", _PAIR, _ENTAILMENT),
            GlueTask("wnli", _PAIR, ("not_entailment", "entailment")),
        )
    }
)

for _task in TASKS.values():
    register(_task)
