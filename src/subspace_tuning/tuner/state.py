"""What a layer knows of each of its adapters, apart from their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..algebra import Plan, Sizes
from ..methods import Method


@dataclass(frozen=True)
class AdapterState:
    """One adapter in one layer. It is immutable: whatever changes comes as a new state.

    So a forward pass sees with one comparison that nothing has changed.

    Attributes:
        method: the method, on a convolution that for its number of axes.
        r: the rank.
        alpha: the scale's numerator.
        scale: s, alpha / r unless the config says otherwise.
        sizes: the dimensions of the formula's shapes.
        plans: how the formula is evaluated in training and in evaluation.
        dropout: the probability with which inputs of the added terms are dropped in training.
        patterns: the constraints on the factors of the low-rank terms.
        pattern_weight: the weight of their penalty.
        gate_weight: the weight of each gate that is expected to be open.
        strength: t in W + t (phi(W) - W).
        computed: the names of the constants that follow from W.
        awaits_mask: the mask was chosen from data and has yet to be loaded.
    """

    method: Method
    r: int
    alpha: float
    scale: float
    sizes: Sizes
    plans: tuple[Plan, Plan]
    dropout: float = 0.0
    patterns: tuple[str, ...] = ()
    pattern_weight: float = 0.0
    gate_weight: float = 0.0
    strength: float = 1.0
    computed: tuple[str, ...] = ()
    awaits_mask: bool = False

    def __str__(self) -> str:
        formula = self.method.formula
        told = [
            str(formula),
            *([f"r={self.r}"] if formula.has_rank else []),
            *([f"s={self.scale:g}"] if "s" in formula.expression.names else []),
            f"{formula.count(self.sizes):,} trained",  # from the shapes: a factor may be elsewhere, or in parts
            *([f"pattern={'+'.join(self.patterns)}"] if self.patterns else []),
        ]
        return ", ".join(told)


class View(Mapping[str, Any]):
    """One field of the states of a layer's adapters, by name. It follows the adapters as they come and go."""

    def __init__(self, adapters: dict[str, AdapterState], field: str) -> None:
        self._adapters, self._field = adapters, field

    def __getitem__(self, name: str) -> Any:
        return getattr(self._adapters[name], self._field)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __repr__(self) -> str:
        return repr(dict(self))


class SettableView(View):
    """A field that can be set, as the scale can with peft's layers."""

    def __setitem__(self, name: str, value: Any) -> None:
        self._adapters[name] = replace(self._adapters[name], **{self._field: value})
