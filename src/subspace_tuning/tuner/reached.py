"""Which penalties a backward pass has reached since the optimiser's last step, and which it has not.

A penalty is part of the loss that the model computes. A trainer that computes its loss elsewhere never differentiates
it; then ``optimizer_step`` adds its gradient. So that it acts exactly once, a hook on every penalty notes the factors
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
        """The patterns, of which some are penalties."""
        return self.layer.adapters[self.adapter].patterns

    @property
    def pattern_weight(self) -> float:
        """The weight of the patterns' penalty on this matrix."""
        return self.layer.adapters[self.adapter].pattern_weight

    @property
    def gate_weight(self) -> float:
        """The weight of each gate that is expected to be open."""
        return self.layer.adapters[self.adapter].gate_weight

    def enabled(self) -> bool:
        """Return whether the module's output depends on the adapter now."""
        layer = self.layer
        return self.adapter in layer.active_adapters and not layer.disable_adapters and not layer.merged

    def factors(self) -> dict[str, nn.Parameter]:
        """Return the factors that the penalty depends on, by name."""
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
    """What has come to the factors of one layer; factors are named as (adapter, name)."""

    reached: set[tuple[str, str]] = field(default_factory=set)
    handled: dict[tuple[str, str], tuple[ref[Tensor], int]] = field(default_factory=dict)
    acted: bool = False  # some penalty has reached a gradient since this was last asked


_RECORDS: WeakKeyDictionary[SubspaceLayer, Record] = WeakKeyDictionary()


def record(layer: SubspaceLayer) -> Record:
    """Return the record of a layer, which is kept as long as the layer lives."""
    return _RECORDS.setdefault(layer, Record())


def recorded() -> Iterator[Penalised]:
    """Yield the penalised adapters in all layers that have a record."""
    for layer in list(_RECORDS):
        for adapter in layer.subspace_params:
            site = Penalised(layer, adapter)
            if site.pattern_weight or site.gate_weight:
                yield site


def note_backward(total: Tensor, sites: Iterable[Penalised]) -> None:
    """Note the factors of these sites as reached when a backward pass reaches a penalty."""
    if not total.requires_grad or torch.compiler.is_compiling() or functorch_is_active():
        return
    keys = [(record(site.layer), [(site.adapter, name) for name in site.factors()]) for site in sites]

    def note(gradient: Tensor) -> None:
        for held, names in keys:
            held.reached.update(names)
            held.acted = True

    total.register_hook(note)
