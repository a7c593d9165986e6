"""Conversion between A and B of W + A @ B and the tensors of peft's LoRA, for each kind of layer.

Linear layers and transformers' Conv1D have ``lora_A.weight`` r x n and ``lora_B.weight`` m x r. Embeddings have
``lora_embedding_A`` r x n and ``lora_embedding_B`` m x r. A convolution has two convolutions: r kernels over all input
channels, then one with window 1 and the groups of the base layer, so that each group uses r / groups of the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SubspaceError
from .kinds import ConvKind, EmbeddingKind, kind_of

LINEAR, EMBEDDING, CONVOLUTION = "linear", "embedding", "convolution"


@dataclass(frozen=True)
class Layout:
    """What is needed to write a layer's factors: its kind, and a convolution's window, groups and extras."""

    kind: str = LINEAR
    window: tuple[int, ...] = ()
    groups: int = 1
    beyond: str = ""  # features of the layer that peft's LoRA does not support
    padding: int | None = None  # the row of an embedding that is never adapted

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Return the layout of a module, which may have no weights yet."""
        kind = kind_of(module)
        if isinstance(kind, EmbeddingKind):
            return cls(EMBEDDING, padding=getattr(module, "padding_idx", None))
        if not isinstance(kind, ConvKind):
            return cls()
        beyond = [f"dilation={module.dilation}"] if set(module.dilation) != {1} else []  # type: ignore[arg-type]
        beyond += [f"padding_mode={module.padding_mode}"] if module.padding_mode != "zeros" else []
        return cls(CONVOLUTION, kind.window(module), int(module.groups), ", ".join(beyond))  # type: ignore[arg-type]

    def written(self) -> list[str | int]:
        """Return the layout as plain data."""
        if self.kind == CONVOLUTION:
            return [self.kind, self.beyond, self.groups, *self.window]
        return [self.kind, *([] if self.padding is None else [self.padding])]

    @classmethod
    def read(cls, data: object) -> Layout:
        """Return the layout from the result of ``written``. Raises SubspaceError if it is not one."""
        match data:
            case ["linear"]:
                return cls()
            case ["embedding"]:
                return cls(EMBEDDING)
            case ["embedding", int(padding)]:
                return cls(EMBEDDING, padding=padding)
            case ["convolution", str(beyond), int(groups), *window]:
                sizes = tuple(size for size in window if isinstance(size, int) and size > 0)
                if groups > 0 and len(sizes) == len(window) > 0:
                    return cls(CONVOLUTION, sizes, groups, beyond)
        raise SubspaceError(f"{data!r} is not a layout of a layer")

    def rank(self, r: int) -> int:
        """Return the rank of peft's form of rank r: every group of a convolution needs its own kernels."""
        return r * self.groups


def to_peft(layout: Layout, A: Tensor, B: Tensor, rank: int) -> dict[str, Tensor]:
    """Return peft's tensors for A (n x r) and B (r x m), by the ends of their names.

    Args:
        layout: the layer's layout.
        A: the left factor.
        B: the right factor, including the scale.
        rank: at least ``layout.rank(r)``, and a multiple of the groups; the excess is zero.

    Raises:
        SubspaceError: peft's LoRA does not support the layer.
    """
    if layout.beyond:
        raise SubspaceError(f"peft's LoRA ignores {layout.beyond} of a convolution, so it cannot hold this change")
    added = rank // layout.groups - A.shape[1]
    A, B = nn.functional.pad(A, (0, added)), nn.functional.pad(B, (0, 0, 0, added))
    if layout.padding is not None:  # peft looks this row up like any other
        A = A.index_fill(0, torch.tensor([layout.padding], device=A.device), 0)
    if layout.kind == EMBEDDING:
        return {"lora_embedding_A": A.T, "lora_embedding_B": B.T}
    if layout.kind == LINEAR:
        return {"lora_A.weight": A.T, "lora_B.weight": B.T}
    kernels = A.T.unflatten(1, (-1, *layout.window))  # r x (inputs of a group) x window
    spread = kernels.new_zeros(layout.groups, kernels.shape[0], layout.groups, *kernels.shape[1:])
    for group in range(layout.groups):
        spread[group, :, group] = kernels
    ones = (1,) * len(layout.window)
    return {"lora_A.weight": spread.flatten(2, 3).flatten(0, 1), "lora_B.weight": B.T.reshape(*B.T.shape, *ones)}


def from_peft(tensors: Mapping[str, Tensor]) -> tuple[Layout, Tensor, Tensor]:
    """Return the layout, A and B of one layer from peft's tensors, by the ends of their names.

    Raises:
        SubspaceError: half of them are missing, or groups of a convolution use each other's inputs, so that the result
            is not a change of its weight.
    """
    match tensors:
        case {"lora_embedding_A": A, "lora_embedding_B": B}:
            return Layout(EMBEDDING), A.T, B.T
        case {"lora_A.weight": A, "lora_B.weight": B} if A.dim() == 2:
            return Layout(), A.T, B.T
        case {"lora_A.weight": A, "lora_B.weight": B}:
            return _from_convolution(A, B.flatten(1))
    raise SubspaceError(f"of its two factors, only {', '.join(tensors)} is there")


def _from_convolution(A: Tensor, B: Tensor) -> tuple[Layout, Tensor, Tensor]:
    groups = A.shape[0] // B.shape[1]
    layout = Layout(CONVOLUTION, tuple(A.shape[2:]), groups)
    if groups == 1:
        return layout, A.flatten(1).T, B.T
    kernels = A.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))  # group x own r x group seen x inputs x window
    own = torch.stack([kernels[group, :, group] for group in range(groups)])
    if kernels.count_nonzero() != own.count_nonzero():
        raise SubspaceError("its groups use each other's inputs, which is not a change of the convolution's weight")
    left, right = own.flatten(0, 1).flatten(1).T, torch.block_diag(*(part.T for part in B.chunk(groups)))
    n, m = len(left), right.shape[1]
    if left.shape[1] > min(n, m):  # more kernels than the weight has rows or columns: the product is smaller
        product = left.double() @ right.double()
        left, right = (product, torch.eye(m)) if m <= n else (torch.eye(n), product)
    return layout, left, right
