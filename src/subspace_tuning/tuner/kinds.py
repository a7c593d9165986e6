"""The kinds of modules: how each stores W (n x m), and how its input becomes rows.

torch stores a Linear's weight as m x n, transformers' Conv1D as n x m, an embedding as n x m (one row per token), a
convolution as m x (inputs per group) x window: there n is the size of a patch. Experts that share a parameter are a
stack of matrices. No other file knows these layouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..algebra.rows import Rows
from ..errors import SubspaceError
from .kind import Kind
from .part import ParameterPart
from .quantised import Door, door_of
from .rows import OneHot, Patches


class LinearKind(Kind):
    fusible = True
    module_types = (nn.Linear,)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.T


class QuantisedKind(LinearKind):
    """A linear layer of a quantisation library. It runs in the library's code, and its weight is behind a door."""

    fusible = False
    opaque = True

    def hosts(self, module: nn.Module) -> bool:
        return door_of(module) is not None

    def held(self, module: nn.Module) -> Door:
        door = door_of(module)
        assert door is not None
        return door

    def numbers(self, module: nn.Module) -> Tensor:
        return self.held(module).dequantise().T

    def knows(self, module: nn.Module) -> bool:
        return True

    def check(self, module: nn.Module, name: str) -> None:
        if self.held(module).device.type != "meta":
            super().check(module, name)


class Conv1DKind(Kind):
    fusible = True
    module_types = (Conv1D,)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix


class EmbeddingKind(Kind):
    one_hot = True
    module_types = (nn.Embedding,)

    def knows(self, module: nn.Module) -> bool:
        # Gradients scaled by frequency are for the rows that are looked up, not for their factors.
        return (super().knows(module) or _scales_lookups(module)) and not module.scale_grad_by_freq

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix

    def rows(self, module: nn.Module, x: Tensor) -> Rows:
        return OneHot(x, module.weight)  # type: ignore[arg-type]

    def finish(self, module: nn.Module, y: Tensor) -> Tensor:
        if not _scales_lookups(module):
            return y
        factor: Any = module.embed_scale
        return y * (factor.to(y.dtype) if isinstance(factor, Tensor) else factor)

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        return x.numel()

    def keeps_rows(self, module: nn.Module) -> bool:
        return _padding(module) is not None

    def keep_rows(self, module: nn.Module, phi: Tensor, W: Tensor) -> Tensor:
        padding = _padding(module)
        if padding is None:
            return phi
        kept = torch.tensor([padding], device=phi.device)
        return phi.index_copy(0, kept, W[padding : padding + 1].to(phi.dtype))

    def keep_outputs(self, module: nn.Module, x: Tensor, y: Tensor, frozen: Tensor) -> Tensor:
        padding = _padding(module)
        return y if padding is None else torch.where((x == padding).unsqueeze(-1), frozen.to(y.dtype), y)

    def check(self, module: nn.Module, name: str) -> None:
        super().check(module, name)
        if getattr(module, "max_norm", None) is not None:
            raise SubspaceError(f"{name}: an embedding with max_norm changes its own weight, so it is not frozen")
        if getattr(module, "sparse", False):
            raise SubspaceError(
                f"{name}: an embedding with sparse=True has sparse gradients, and the factors of an adapter have "
                "dense ones; set its sparse to False"
            )


def _padding(module: nn.Module) -> int | None:
    """Return the row that torch leaves unchanged, since it gets no gradient."""
    return module.padding_idx  # type: ignore[return-value]


def _scales_lookups(module: nn.Module) -> bool:
    """Return whether this is one of transformers' embeddings that only scale their rows by ``embed_scale``.

    Recognised by the names in its forward, since forming phi(W) of a whole vocabulary in every call would be slow.
    """
    if not type(module).__name__.endswith("ScaledWordEmbedding"):
        return False
    code = getattr(type(module).forward, "__code__", None)
    known = {"super", "forward", "embed_scale", "to", "weight", "dtype"}
    return code is not None and "embed_scale" in code.co_names and known.issuperset(code.co_names)


class ConvKind(Kind):
    module_types = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def knows(self, module: nn.Module) -> bool:
        own = getattr(type(module), "_conv_forward", None)
        return super().knows(module) and any(own is vars(known)["_conv_forward"] for known in self.module_types)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).T

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.T.reshape(shape)

    def rows(self, module: nn.Module, x: Tensor) -> Rows:
        return Patches(x, _as_conv(module))

    def finish(self, module: nn.Module, y: Tensor) -> Tensor:
        groups = _as_conv(module).groups
        if groups > 1:  # every patch was multiplied by all of phi(W); the output of group g needs g's columns
            own = y.unflatten(-1, (groups, -1))
            y = own.diagonal(dim1=-3, dim2=-2).movedim(-1, -2).flatten(-2)
        return y.movedim(-1, -_as_conv(module).weight.dim() + 1)

    def forms_weight(self, module: nn.Module) -> bool:
        # On rows, each group's patches would be multiplied by the columns of all groups. A weight of half precision
        # would round the change away.
        conv = _as_conv(module)
        return conv.groups > 1 and conv.weight.dtype.itemsize >= 4

    def window(self, module: nn.Module) -> tuple[int, ...]:
        return tuple(_as_conv(module).weight.shape[2:])

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        # Upper bound: the output has at most about as many positions as the input, over the stride.
        conv = _as_conv(module)
        positions = x.numel() // x.shape[-conv.weight.dim() + 1]
        for stride in conv.stride:
            positions //= stride
        return max(1, positions * conv.groups)


class NormKind(Kind):
    """A normalisation: its weight is a row of scales, its bias has the same shape."""

    only_bias = True
    wrappable = True
    module_types: tuple[type[nn.Module], ...] = (nn.LayerNorm,)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.squeeze(0)

    def check(self, module: nn.Module, name: str) -> None:
        super().check(module, name)
        if module.weight.dim() > 1:  # type: ignore[operator]
            raise SubspaceError(f"{name}: a normalisation over more than one dimension cannot be adapted")

    def along(self, bias: Tensor, dimensions: int) -> Tensor:
        """Return a bias, shaped to be added to an output of this many dimensions."""
        return bias


class GroupNormKind(NormKind):
    """The channels are the second dimension, not the last."""

    wrappable = False
    module_types = (nn.GroupNorm,)

    def along(self, bias: Tensor, dimensions: int) -> Tensor:
        return bias.view(-1, *(1 for _ in range(dimensions - 2)))


class ParameterKind(Kind):
    """A parameter that its module reads in a forward of its own: one matrix, or a stack of them, one of each expert."""

    def __init__(self, transposed: bool) -> None:
        self.transposed = transposed

    def hosts(self, module: nn.Module) -> bool:
        return isinstance(module, ParameterPart) and module.transposed is self.transposed

    def matrix(self, weight: Tensor) -> Tensor:
        return weight if self.transposed else weight.mT

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix if self.transposed else matrix.mT

    def knows(self, module: nn.Module) -> bool:
        return True


_KINDS: tuple[Kind, ...] = (
    QuantisedKind(),
    LinearKind(),
    Conv1DKind(),
    EmbeddingKind(),
    ConvKind(),
    NormKind(),
    GroupNormKind(),
    ParameterKind(transposed=False),
    ParameterKind(transposed=True),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a module, or None if it cannot be adapted."""
    return next((kind for kind in _KINDS if kind.hosts(module)), None)


def supported() -> str:
    """Return the names of the module types that can be adapted."""
    return ", ".join(dict.fromkeys(known.__name__ for kind in _KINDS for known in kind.module_types))


def _as_conv(module: nn.Module) -> nn.Conv2d:
    # The three convolutions share everything used here.
    return module  # type: ignore[return-value]
