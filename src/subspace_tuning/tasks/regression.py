"""A number per row, from own files.

Prices and percentages are far from the outputs of a fresh head, so the model learns them in units of their standard
deviation around their mean; everything reported is in the file's units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch import nn

from ..errors import SubspaceError
from .data.records import Records, shown
from .data.tables import Table
from .intervals import Figure
from .own import labelled
from .own_texts import OwnTextTask
from .registry import register
from .rows import Seen, Values


@dataclass(frozen=True)
class Regression(OwnTextTask):
    """A number per row.

    Attributes:
        mean: the mean of the labels, which corresponds to the model's output 0.
        deviation: their standard deviation, the unit of the model's output.
    """

    name = "regression"
    primary = "r2"

    mean: float = 0.0
    deviation: float = 1.0

    @property
    def model_settings(self) -> dict[str, Any]:
        """A head with one output, and the loss of a regression."""
        return {"num_labels": 1, "problem_type": "regression"}

    @property
    def label_type(self) -> DTypeLike:
        """The type of the outputs."""
        return np.float32

    def raw_labels(self, records: Records) -> list[float]:
        """Return the rows' numbers."""
        values = labelled(records, self.label)
        numbers = [_number(value) for value in values]
        if wrong := [row for row, number in enumerate(numbers) if not math.isfinite(number)]:
            records.refuse(
                wrong,
                f"column {self.label!r} is {shown(values[wrong[0]])}, which is not a number",
                "write it as 1234.5, or use task.name=classification for classes",
            )
        return numbers

    def settled(self, records: Records, labels: list[float]) -> Regression:
        """Return the task with the mean and the standard deviation of its labels."""
        mean, deviation = float(np.mean(labels)), float(np.std(labels))
        if not (math.isfinite(deviation) and deviation > 0):
            raise SubspaceError(
                f"{records.where}, column {self.label!r}: all {len(labels)} numbers are {labels[0]:g} or beyond "
                "measure: there is nothing to learn"
            )
        return replace(self, mean=mean, deviation=deviation)

    def numbers(self, records: Records, labels: Sequence[float]) -> Values:
        """Return the labels in the model's units."""
        return (np.asarray(labels, dtype=np.float64) - self.mean) / self.deviation

    def values(self, outputs: Values) -> Values:
        """Return outputs or labels in the file's units."""
        return np.asarray(outputs, dtype=np.float64) * self.deviation + self.mean

    def stand_alone(self, model: nn.Module) -> Regression:
        """Make the last layer of the head return the file's units itself."""
        ends = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == 1]
        if len(ends) != 1 or ends[0].bias is None:
            raise SubspaceError(
                f"the head of {type(model).__name__} does not end in one linear layer with a bias, so its outputs stay "
                f"in units of {self.deviation:g} around {self.mean:g}: such a model cannot stand alone"
            )
        with torch.no_grad():
            ends[0].weight.mul_(self.deviation)
            ends[0].bias.mul_(self.deviation).add_(self.mean)
        return replace(self, mean=0.0, deviation=1.0)

    def predict(self, outputs: Values) -> Values:
        """Return one number per row, in the file's units."""
        return self.values(outputs.reshape(-1))

    def compared(self, seen: Seen[Table]) -> tuple[Values, Values]:
        """Return a prediction and a label for each row; those of an evaluation are in the model's units."""
        predictions, labels = super().compared(seen)
        return predictions, self.values(labels.reshape(-1))

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the share of variance explained, correlations, and errors in the file's units."""
        moving = np.ptp(predictions) > 0 and np.ptp(labels) > 0  # the correlation with a constant is undefined
        return {
            "r2": _r2(predictions, labels),
            "rmse": float(root_mean_squared_error(labels, predictions)),
            "mae": float(mean_absolute_error(labels, predictions)),
            "pearson": float(stats.pearsonr(predictions, labels).statistic) if moving else 0.0,
            "spearman": float(stats.spearmanr(predictions, labels).statistic) if moving else 0.0,
        }

    def resampled(self, predictions: Values, labels: Values) -> Figure:
        """Return the share of variance explained in rows."""
        return lambda rows: _r2(predictions[rows], labels[rows])

    def answers(self, seen: Seen[Table]) -> list[dict[str, Any]]:
        """Return each row's texts with its number."""
        return self.beside_texts(seen.rows, [{"predicted": float(number)} for number in self.predict(seen.outputs)])

    def baseline(self, train: Table, rows: Table) -> dict[str, float]:
        """Return the figures of the training labels' mean."""
        constant = float(np.mean(self.values(train.known)))
        return self.score(np.full(len(rows), constant), self.values(rows.known))


def _r2(predictions: Values, labels: Values) -> float:
    if np.ptp(labels) == 0:  # there is no variance to explain
        return 0.0
    return float(1 - np.square(predictions - labels).sum() / np.square(labels - labels.mean()).sum())


def _number(value: Any) -> float:
    """Return a value as a number; NaN if it is not one."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number beyond every float
        return math.nan


register(Regression())
