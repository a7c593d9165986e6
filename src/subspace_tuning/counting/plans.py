"""How each matrix of a model would be evaluated, and the cost of the alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..algebra import Alternative, Sizes, alternatives
from ..models.meta import without_weights
from ..tuner import SubspaceConfig
from .count import adapt


@dataclass(frozen=True)
class Planned:
    """The ways to evaluate a method on matrices of one size, the cheapest first."""

    sizes: Sizes
    modules: tuple[str, ...]
    ways: tuple[Alternative, ...]


def plans_in(architecture: PretrainedConfig, config: SubspaceConfig, rows: int, training: bool) -> Iterator[Planned]:
    """Yield for each size of matrix that a method adapts in a model how it is evaluated.

    Args:
        architecture: the model's configuration; it is built without weights.
        config: the adapter.
        rows: the number of rows at once, batch x tokens.
        training: count the backward pass, too.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    found: dict[Sizes, list[str]] = {}
    for name, layer in adapt(without_weights(architecture), config).items():
        found.setdefault(layer.adapters["default"].sizes, []).append(name)
    for sizes, modules in found.items():
        yield Planned(sizes, tuple(modules), tuple(alternatives(config.resolved.formula, sizes, rows, training)))
