"""Sites, on which a schedule acts: one adapter's factors in one layer, however they are stored or sharded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..algebra import Formula
from . import zero
from .layer import SubspaceLayer
from .sharding import whole, write
from .weights import whole as whole_module

_PARTS: WeakKeyDictionary[SubspaceLayer, dict[tuple[str, str], tuple[Tensor, int]]] = WeakKeyDictionary()
"""For layers with a schedule: parts of gradients that ZeRO frees in its step."""


@dataclass(frozen=True)
class LayerSite:
    """One adapter in one layer, or one of a stack's matrices there, as a ``Site`` of a schedule."""

    name: str
    layer: SubspaceLayer
    adapter: str
    index: int | None = None  # in the stack

    @classmethod
    def of(cls, name: str, layer: SubspaceLayer, adapter: str) -> list[LayerSite]:
        """Return the sites of an adapter in a layer, one for each of its matrices."""
        if not layer.stacked:
            return [cls(name, layer, adapter)]
        return [cls(f"{name}.{index}", layer, adapter, index) for index in range(layer.copies)]

    def __post_init__(self) -> None:
        _PARTS.setdefault(self.layer, {})

    @property
    def formula(self) -> Formula:
        """The formula, from which the factors' roles follow."""
        return self.layer.adapters[self.adapter].method.formula

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The factors, by name."""
        return self.layer.subspace_params[self.adapter]  # type: ignore[return-value]

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The frozen tensors of the method, by name."""
        self.layer.follow_moves(self.adapter)
        buffers: Mapping[str, Tensor] = self.layer.subspace_constants[self.adapter]._buffers  # type: ignore[assignment]
        return {name: self._own(tensor) for name, tensor in buffers.items()}

    @property
    def weight(self) -> Tensor:
        """The frozen W (n x m)."""
        with whole_module(self.layer.get_base_layer()):
            return self._own(self.layer.kind.matrix(whole(self.layer.frozen_weight.detach())))

    @property
    def scale(self) -> float:
        """The scale s."""
        return self.layer.adapters[self.adapter].scale

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.layer.adapters[self.adapter].r

    def value(self, factor: str) -> Tensor:
        """Return the value of a factor in the formula."""
        parameter = self.parameters[factor]
        held = self._own(zero.read(parameter) if zero.in_zero(parameter) else whole(parameter.detach()))
        anchor = self._anchor(factor)
        return held if anchor is None else anchor + held

    def gradient(self, factor: str) -> Tensor | None:
        """Return the gradient of the last optimiser step, or None."""
        parameter = self.parameters[factor]
        if zero.in_zero(parameter) and parameter.grad is None:
            return zero.summed(parameter, _PARTS[self.layer].get((self.adapter, factor)))
        return None if parameter.grad is None else self._own(whole(parameter.grad))

    @torch.no_grad()
    def write(self, factor: str, value: Tensor) -> None:
        """Set the value of a factor."""
        parameter, anchor = self.parameters[factor], self._anchor(factor)
        value = value if anchor is None else value - anchor
        if zero.in_zero(parameter):
            zero.write(parameter, value)
        else:
            self._write(parameter, value)

    def _anchor(self, factor: str) -> Tensor | float | None:
        """Return the anchor from which the parameter is the offset, or None if it is the value itself."""
        method = self.layer.adapters[self.adapter].method
        anchor = method.readings[self.layer.kind.one_hot].anchors.get(factor)
        return self.constants[anchor] if isinstance(anchor, str) else anchor

    @torch.no_grad()
    def forget(self, factor: str, moved: Tensor, optimizer: Optimizer) -> None:
        """Zero an optimiser's state for some entries of a factor: running averages of the factor's shape."""
        parameter = self.parameters[factor]
        if zero.in_zero(parameter):
            zero.forget(parameter, moved)
            return
        for held in optimizer.state.get(parameter, {}).values():
            if isinstance(held, Tensor) and held.shape == parameter.shape and held.is_floating_point():
                self._write(held, self._own(whole(held)).masked_fill(moved.to(held.device), 0.0))

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor if self.index is None else tensor[self.index]

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        """Overwrite what is the site's own of a tensor."""
        if self.index is not None:
            index = torch.tensor([self.index], device=tensor.device)
            value = whole(tensor).index_copy(0, index, value[None].to(tensor))
        write(tensor, value)


def keep_parts(optimizer: Optimizer) -> None:
    """Keep the gradients of scheduled factors before a step of ZeRO's inner optimiser frees them."""
    for layer, parts in list(_PARTS.items()):
        for adapter, factors in layer.subspace_params.items():
            for name, parameter in factors._parameters.items():
                part = None if parameter is None else zero.gradient_part(parameter, optimizer)
                if part is not None:
                    parts[adapter, name] = (part[0].clone(), part[1])
