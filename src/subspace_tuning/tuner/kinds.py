"""Layer kinds: how each kind of module holds W (n x m), and how its input becomes rows.

torch stores a Linear's weight as m x n, transformers' Conv1D as n x m, an embedding as n x m (one row per token), a
convolution as m x (inputs per group) x window: there n is the size of a patch. No other file knows these layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ..algebra.rows import Rows
from ..errors import SubspaceError


class Kind(ABC):
    """What the tuner asks of a kind of module."""

    one_hot = False  # the input is an index into the rows of W
    only_bias = False  # there is no matrix: the module offers its bias alone

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return W, n x m, as a view of a module's weight."""

    @abstractmethod
    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return an n x m matrix as a module's weight of this shape."""

    def rows(self, module: nn.Module, x: Tensor) -> Rows:
        """Return the input as rows of width n."""
        return x

    def finish(self, module: nn.Module, y: Tensor) -> Tensor:
        """Return rows of width m as the module's output."""
        return y

    def window(self, module: nn.Module) -> tuple[int, ...]:
        """Return the window of a convolution, () for everything else."""
        return ()

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        """Return how many rows the input has."""
        return x.numel() // x.shape[-1]

    def is_plain(self, module: nn.Module) -> bool:
        """Whether the module does to its input what its weight and bias say, and nothing else."""
        return False

    def check(self, module: nn.Module, name: str) -> None:
        """Raise SubspaceError if this module cannot be adapted."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise SubspaceError(f"{name}: the weight has entries that are not finite; is the checkpoint damaged?")


class MatrixKind(Kind):
    module_type: type[nn.Module]

    def is_plain(self, module: nn.Module) -> bool:
        # A subclass has its own forward, and so has a module that another library gave one (offloading does).
        own = type(module) is not self.module_type or "forward" in module.__dict__
        return not (own or module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class LinearKind(MatrixKind):
    module_type = nn.Linear

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.T


class Conv1DKind(MatrixKind):
    module_type = Conv1D

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix


class EmbeddingKind(Kind):
    one_hot = True

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix

    def rows(self, module: nn.Module, x: Tensor) -> Rows:
        return OneHot(x, module.weight)  # type: ignore[arg-type]

    def finish(self, module: nn.Module, y: Tensor) -> Tensor:
        factor = getattr(module, "embed_scale", None)  # Gemma and others scale what they look up
        return y if factor is None else y * (factor.to(y.dtype) if isinstance(factor, Tensor) else factor)

    def count_rows(self, module: nn.Module, x: Tensor) -> int:
        return x.numel()

    def check(self, module: nn.Module, name: str) -> None:
        super().check(module, name)
        if getattr(module, "max_norm", None) is not None:
            raise SubspaceError(f"{name}: an embedding with max_norm changes its own weight, so it is not frozen")


class ConvKind(Kind):
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

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.squeeze(0)

    def check(self, module: nn.Module, name: str) -> None:
        super().check(module, name)
        if module.weight.dim() > 1:  # type: ignore[operator]
            raise SubspaceError(f"{name}: a normalisation over more than one dimension cannot be adapted")

    def along(self, bias: Tensor, dimensions: int) -> Tensor:
        """Return a bias so that it can be added to an output of so many dimensions."""
        return bias


class GroupNormKind(NormKind):
    """The channels stand behind the batch, not at the end."""

    def along(self, bias: Tensor, dimensions: int) -> Tensor:
        return bias.view(-1, *(1 for _ in range(dimensions - 2)))


_KINDS: tuple[tuple[tuple[type[nn.Module], ...], Kind], ...] = (
    ((nn.Linear,), LinearKind()),
    ((Conv1D,), Conv1DKind()),
    ((nn.Embedding,), EmbeddingKind()),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvKind()),
    ((nn.LayerNorm,), NormKind()),
    ((nn.GroupNorm,), GroupNormKind()),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a module, None if it is none of ours."""
    return next((kind for types, kind in _KINDS if isinstance(module, types)), None)


def supported() -> str:
    """Return the names of the module types that can be adapted."""
    return ", ".join(kind.__name__ for types, _ in _KINDS for kind in types)


@dataclass(frozen=True)
class OneHot:
    """Rows of an identity, given by their indices: a product with a matrix looks its rows up."""

    indices: Tensor
    weight: Tensor
    scales: Tensor | None = None

    def matmul(self, matrix: Tensor) -> Tensor:
        rows = F.embedding(self.indices, matrix.to(self.weight.dtype))
        return rows if self.scales is None else rows * self.scales.unsqueeze(-1).to(rows.dtype)

    def scale(self, vector: Tensor) -> OneHot:
        own = F.embedding(self.indices, vector.unsqueeze(-1)).squeeze(-1)
        return replace(self, scales=own if self.scales is None else self.scales * own)

    def materialise(self) -> Tensor:
        return self.matmul(torch.eye(len(self.weight), device=self.weight.device, dtype=self.weight.dtype))


@dataclass(frozen=True)
class Patches:
    """The patches of a convolution's input: a product with a matrix is a convolution with it as the kernel.

    With groups the rows are (..., position, group), each the patch of one group.
    """

    x: Tensor
    module: nn.Conv2d
    scales: Tensor | None = None

    def matmul(self, matrix: Tensor) -> Tensor:
        if self.scales is not None:
            matrix = self.scales.unsqueeze(-1) * matrix
        groups, window = self.module.groups, self.module.weight.shape[1:]
        kernel = matrix.to(self.x.dtype).T.reshape(-1, *window)
        if groups > 1:
            kernel = kernel.repeat(groups, *(1 for _ in window))
        y: Tensor = self.module._conv_forward(self.x, kernel, None).movedim(-self.module.weight.dim() + 1, -1)
        return y.unflatten(-1, (groups, -1)) if groups > 1 else y

    def scale(self, vector: Tensor) -> Patches:
        return replace(self, scales=vector if self.scales is None else self.scales * vector)

    def materialise(self) -> Tensor:
        size = self.module.weight[0].numel()
        return self.matmul(torch.eye(size, device=self.x.device, dtype=self.x.dtype))


def _as_conv(module: nn.Module) -> nn.Conv2d:
    # The three convolutions share all that is used here.
    return module  # type: ignore[return-value]
