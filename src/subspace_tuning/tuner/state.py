"""What a layer knows about each of its adapters, apart from their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..algebra import Plan, Sizes
from ..errors import SubspaceError
from ..methods import Method
from .frozen import FrozenLayer
from .strength import strength


@dataclass(frozen=True)
class AdapterState:
    """One adapter in one layer. It is immutable: every change makes a new state.

    So a forward pass needs one comparison to see that nothing has changed.

    Attributes:
        method: the method; for a convolution, its version for the number of axes.
        r: the rank.
        alpha: the scale's numerator.
        scale: s, alpha / r unless the config sets it otherwise.
        sizes: the dimensions of the formula's shapes.
        plans: the plans of the formula for training and for evaluation.
        dropout: the probability of dropping inputs of the added terms in training.
        patterns: the constraints on the factors of the low-rank terms.
        pattern_weight: the weight of their penalty.
        gate_weight: the weight of each gate expected to be open.
        strength: t in W + t (phi(W) - W).
        computed: the names of the constants computed from W.
        awaits_mask: the mask was chosen from data and is not loaded yet.
        copies: how many matrices there are, each with its own factors: the experts in one parameter, else 1.
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
    copies: int = 1

    def __str__(self) -> str:
        formula = self.method.formula
        parts = [
            str(formula),
            *([f"r={self.r}"] if formula.has_rank else []),
            *([f"s={self.scale:g}"] if "s" in formula.expression.names else []),
            # From the shapes: a factor may be offloaded or partitioned.
            f"{self.copies * formula.count(self.sizes):,} trained",
            *([f"pattern={'+'.join(self.patterns)}"] if self.patterns else []),
        ]
        return ", ".join(parts)


class View(Mapping[str, Any]):
    """One field of the states of a layer's adapters, by name: a live view."""

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
    """A field that can be set, like the scale of peft's layers."""

    def __setitem__(self, name: str, value: Any) -> None:
        self._adapters[name] = replace(self._adapters[name], **{self._field: value})


class StatedLayer(FrozenLayer):
    """The part of a ``SubspaceLayer`` that has the states of its adapters, with the attributes of peft's layers."""

    adapters: dict[str, AdapterState]

    @property
    def method(self) -> Mapping[str, Method]:
        """The method of every adapter."""
        return View(self.adapters, "method")

    @property
    def r(self) -> Mapping[str, int]:
        """The rank of every adapter."""
        return View(self.adapters, "r")

    @property
    def alpha(self) -> Mapping[str, float]:
        """The scale's numerator of every adapter."""
        return View(self.adapters, "alpha")

    @property
    def scaling(self) -> SettableView:
        """The scale s of every adapter; setting one changes the adapter."""
        return SettableView(self.adapters, "scale")

    def weigh_patterns(self, adapter_name: str, weight: float) -> None:
        """Set the weight of the penalty on an adapter's patterns."""
        self._change(adapter_name, pattern_weight=weight)

    def _change(self, adapter_name: str, **changes: Any) -> None:
        self.adapters[adapter_name] = replace(self.adapters[adapter_name], **changes)

    # Strength: peft's and diffusers' calls to weigh an adapter. It is not saved.

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's strength: the layer's weight is W + scale * (phi(W) - W). A merged weight is unchanged.

        Does nothing if the layer has no such adapter. Raises SubspaceError if the scale is not finite.
        """
        if adapter in self.adapters:
            self._change(adapter, strength=strength(scale))

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters. Raises SubspaceError if the scale is not finite."""
        for name in self._active():
            self._change(name, strength=self.adapters[name].strength * strength(scale))

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of the active adapters, or reset it to 1 without ``scale``.

        Raises SubspaceError if the scale is 0 or not finite.
        """
        if scale == 0:
            raise SubspaceError("a strength cannot be divided by 0; unscale_layer() resets it to 1")
        for name in self._active():
            self._change(name, strength=1.0 if scale is None else self.adapters[name].strength / strength(scale))

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.adapters]

    def extra_repr(self) -> str:
        """Return a line for each adapter: formula, rank, scale, trained parameters, patterns."""
        return "\n".join(f"{name}: {state}" for name, state in self.adapters.items())
