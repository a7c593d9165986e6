"""How each matrix of a model would be evaluated, and what the other ways would cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peft import get_peft_model
from transformers import PretrainedConfig

from ..algebra import Alternative, Sizes, alternatives
from ..tuner import SubspaceConfig, SubspaceLayer
from .count import evenly, without_weights


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
        rows: how many rows meet the matrix at once, that is batch x tokens.
        training: count the backward pass, too.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    model = without_weights(architecture)
    if config.resolved.needs_calibration:
        config = evenly(model, config)
    adapted = get_peft_model(model, config)
    found: dict[Sizes, list[str]] = {}
    for name, layer in adapted.named_modules():
        if isinstance(layer, SubspaceLayer):
            found.setdefault(layer.sizes["default"], []).append(name.removeprefix("base_model.model."))
    for sizes, modules in found.items():
        yield Planned(sizes, tuple(modules), tuple(alternatives(config.resolved.formula, sizes, rows, training)))
