"""Records which penalties a backward pass has reached since the optimiser's last step.

A penalty is part of the loss that the model computes. A trainer that computes its loss elsewhere never differentiates
it; ``optimizer_step`` then adds its gradient. So that it acts exactly once, a hook on every penalty records the factors
that a backward pass reached through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..algebra.nodes import Gate
from ..compat import functorch_is_active
from ..methods.patterns import pairs
from .layer import SubspaceLayer


class Penalised(NamedTuple):
    """An adapter in one module, with a penalty on its factors."""

    layer: SubspaceLayer
    adapter: str

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, some of which are penalties."""
        return self.layer.adapters[self.adapter].patterns

    @property
    def pattern_weight(self) -> float:
        """The weight of the patterns' penalty on this matrix."""
        return self.layer.adapters[self.adapter].pattern_weight

    @property
    def gate_weight(self) -> float:
        """The weight of each gate expected to be open."""
        return self.layer.adapters[self.adapter].gate_weight

    def enabled(self) -> bool:
        """Return whether the module's output currently depends on the adapter."""
        layer = self.layer
        return self.adapter in layer.active_adapters and not layer.disable_adapters and not layer.merged

    def factors(self) -> dict[str, nn.Parameter]:
        """Return the factors on which the penalty depends, by name."""
        names: set[str] = set()
        formula = self.layer.adapters[self.adapter].method.formula
        if self.pattern_weight:
            names |= {name for term in pairs(formula) for name in (*term.down.names, *term.up.names)}
        if self.gate_weight:
            for node in formula.expression.walk():
                names |= set(node.names) if isinstance(node, Gate) else set()
        held = self.layer.subspace_params[self.adapter]._parameters
        return {name: factor for name, factor in held.items() if factor is not None and name in names}


@dataclass
class Record:
    """What has reached the factors of one layer; a factor's key is (adapter, name)."""

    reached: set[tuple[str, str]] = field(default_factory=set)
    handled: dict[tuple[str, str], tuple[ref[Tensor], int]] = field(default_factory=dict)
    acted: bool = False  # a penalty has reached a gradient since this was last read


_RECORDS: WeakKeyDictionary[SubspaceLayer, Record] = WeakKeyDictionary()


def record(layer: SubspaceLayer) -> Record:
    """Return the record of a layer, which lives as long as the layer."""
    return _RECORDS.setdefault(layer, Record())


def recorded() -> Iterator[Penalised]:
    """Yield the penalised adapters in all layers that have a record."""
    for layer in list(_RECORDS):
        for adapter in layer.subspace_params:
            site = Penalised(layer, adapter)
            if site.pattern_weight or site.gate_weight:
                yield site


def note_backward(total: Tensor, sites: Iterable[Penalised]) -> None:
    """Record the factors of these sites as reached when a backward pass reaches a penalty."""
    if not total.requires_grad or torch.compiler.is_compiling() or functorch_is_active():
        return
    keys = [(record(site.layer), [(site.adapter, name) for name in site.factors()]) for site in sites]

    def note(gradient: Tensor | None) -> None:
        if gradient is None:  # DDP's backward pass visits all outputs, also a loss that nobody differentiates
            return
        for held, names in keys:
            held.reached.update(names)
            held.acted = True

    total.register_hook(note)
