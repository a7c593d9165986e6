"""A saved adapter: for each matrix its method and factors, from which their sizes and values follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..algebra import Sizes
from ..algebra.names import CHOSEN_SHAPES, start_of
from ..errors import SubspaceError
from ..methods import Method, environment, initial_factors
from ..models.checkpoint import Checkpoint
from ..tuner import SubspaceConfig
from .strict import check_against


@dataclass(frozen=True)
class SavedLayer:
    """One adapted matrix: its method, sizes, and tensors in the file."""

    module: str
    method: Method
    r: int
    scale: float
    parameters: Mapping[str, Tensor]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """n, m and r from the shapes of the factors; 0 if no factor determines it."""
        found = dimensions_of(self.method, {**self.constants, **self.parameters})
        window = tuple(found[axis] for axis in ("w1", "w2", "w3") if axis in found)
        n, m = (found.get(side, found.get(f"{side}1", 0) * found.get(f"{side}2", 0)) for side in "nm")
        return Sizes(
            n or found.get("c", 0) * math.prod(window), m, self.r, found.get("p", 0), found.get("q", 0), window
        )

    def environment(self, weight: Tensor | None, bias: Tensor | None = None, one_hot: bool = False) -> dict[str, Any]:
        """Return the formula's environment, in float64.

        Args:
            weight: W, n x m; None for formulas whose factors do not depend on it.
            bias: b, for formulas that name it.
            one_hot: W belongs to an embedding.
        """
        sizes = self.sizes
        W = torch.empty(sizes.n, sizes.m, device="meta") if weight is None else weight.to("cpu", torch.float64)
        own = {name: _wide(tensor) for name, tensor in self.constants.items()}
        if weight is None:
            constants: dict[str, Tensor] = {}
        else:
            started = initial_factors(
                self.method,
                W,
                self.r,
                one_hot=one_hot,
                scale=self.scale,
                entries=sizes.p,
                directions=sizes.q,
                window=sizes.window,
            )
            constants = {name: _wide(tensor) for name, tensor in started.constants.items()}
        parameters = {name: _wide(tensor) for name, tensor in self.parameters.items()}
        wide_bias = None if bias is None else bias.double()
        return dict(environment(self.method, W, parameters, constants | own, self.scale, wide_bias, one_hot=one_hot))


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter folder: the configuration, a layer per matrix, and the modules saved whole."""

    config: SubspaceConfig
    layers: Mapping[str, SavedLayer]
    saved: Mapping[str, Tensor]
    base: str | None
    source: str = ""

    @property
    def method(self) -> Method:
        """The method in the configuration."""
        return self.config.resolved

    @property
    def parameters(self) -> int:
        """The number of entries of all factors."""
        return sum(tensor.numel() for layer in self.layers.values() for tensor in layer.parameters.values())


def dimensions_of(method: Method, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the dimensions of a formula, from the shapes of its named tensors."""
    return {
        dimension: size
        for name, tensor in tensors.items()
        for dimension, size in zip(method.formula.shapes.get(name, ()), tensor.shape, strict=False)
    }


def layer_base(base: Checkpoint, layer: SavedLayer, adapter: str) -> tuple[Tensor, Tensor | None]:
    """Return W and b of the module that a layer adapts. Raises SubspaceError if the base model does not fit."""
    if layer.module not in base:
        raise SubspaceError(
            f"adapter {adapter!r} adapts {layer.module}, which {base.name!r} does not have: it belongs to another model"
        )
    weight = base.matrix(layer.module)
    sizes = layer.sizes
    for stated, real in zip((sizes.n, sizes.m), weight.shape, strict=True):
        if stated not in (0, real):
            raise SubspaceError(
                f"{layer.module}: the adapter {adapter!r} is for {sizes.n} x {sizes.m}, and W of {base.name!r} is "
                f"{' x '.join(map(str, weight.shape))}"
            )
    check_against(adapter, layer.module, layer.method, layer.parameters, weight.shape)
    return weight, base.bias(layer.module)


def persistent(method: Method, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the constants that can only be restored from the file: masks, chosen directions, drawn starts."""
    drawn = {start_of(name) for name, anchored in method.anchors().items() if not anchored}
    kept = {*method.formula.masked, *CHOSEN_SHAPES, *drawn}
    return {name: tensor for name, tensor in constants.items() if name in kept}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
