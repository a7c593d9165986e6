"""What a layer knows of each of its adapters, apart from their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..algebra import Plan, Sizes
from ..methods import Method
from .frozen import FrozenLayer


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
        copies: how many matrices there are, each with factors of its own: the experts of one parameter, else 1.
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
        told = [
            str(formula),
            *([f"r={self.r}"] if formula.has_rank else []),
            *([f"s={self.scale:g}"] if "s" in formula.expression.names else []),
            # From the shapes: a factor may be elsewhere, or in parts.
            f"{self.copies * formula.count(self.sizes):,} trained",
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


class StatedLayer(FrozenLayer):
    """The part of a ``SubspaceLayer`` that has the states of its adapters, and tells of them what peft's layers do."""

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
        """Weigh an adapter: the layer's weight is W + scale * (phi(W) - W). A merged weight stays as it was merged."""
        if adapter in self.adapters:
            self._change(adapter, strength=float(scale))

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters."""
        for name in self._active():
            self._change(name, strength=self.adapters[name].strength * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of the active adapters, or set it back to 1 if ``scale`` is not given."""
        for name in self._active():
            self._change(name, strength=1.0 if scale is None else self.adapters[name].strength / scale)

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.adapters]

    def extra_repr(self) -> str:
        """Return a line for each adapter: formula, rank, scale, trained parameters, patterns."""
        return "\n".join(f"{name}: {state}" for name, state in self.adapters.items())
