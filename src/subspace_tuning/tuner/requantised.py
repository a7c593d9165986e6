"""The error of merging into quantised weights: the merged weight is quantised again, and the error is reported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .merging import MergingLayer


class Requantised(NamedTuple):
    """The error of a merged weight that was quantised again, in the Frobenius norm.

    Attributes:
        of_weight: relative to phi(W).
        of_change: relative to phi(W) - W. Above 1, quantising changed the weight more than the adapter did.
    """

    of_weight: float
    of_change: float

    @classmethod
    def measured(cls, stored: Tensor, wanted: Tensor, before: Tensor) -> Requantised:
        """Compare the stored weight with the exact merged weight and with the previous one."""
        wanted = wanted.float()
        error, size, change = map(torch.linalg.vector_norm, (stored.float() - wanted, wanted, wanted - before.float()))
        return cls(float(error / size), float(error / change))


def tell(layers: Mapping[str, MergingLayer]) -> None:
    """Warn once of the errors of a model's layers when they were merged."""
    found = {name: layer.requantised for name, layer in layers.items() if layer.requantised is not None}
    if not found:
        return
    worst = max(found, key=lambda name: found[name].of_change)
    errors, shares = zip(*found.values(), strict=True)
    warnings.warn(
        f"{len(found)} merged weights were quantised again, with an error of {_mean(errors):.2%} of the weight and "
        f"{_mean(shares):.0%} of the adapter's change on average, at most {found[worst].of_change:.0%} of the change "
        f"(in {worst}); merged into the model in its original precision, nothing would be lost",
        stacklevel=3,
    )


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
