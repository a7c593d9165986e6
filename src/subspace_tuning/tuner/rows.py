"""Layer inputs as rows that are not tensors: indices of an embedding, and patches of a convolution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class OneHot:
    """Rows of the identity, given by their indices: a product with a matrix looks up the matrix's rows."""

    indices: Tensor
    weight: Tensor
    scales: Tensor | None = None

    def matmul(self, matrix: Tensor) -> Tensor:
        rows = F.embedding(self.indices, matrix.to(self.weight.dtype))
        return rows if self.scales is None else rows * self.scales.unsqueeze(-1).to(rows.dtype)

    def scale(self, vector: Tensor) -> OneHot:
        own = F.embedding(self.indices, vector.unsqueeze(-1)).squeeze(-1)
        return replace(self, scales=own if self.scales is None else self.scales * own)

    def dropout(self, probability: float) -> OneHot:
        return self  # there is no dropout on indices

    def materialise(self) -> Tensor:
        return self.matmul(torch.eye(len(self.weight), device=self.weight.device, dtype=self.weight.dtype))


@dataclass(frozen=True)
class Patches:
    """The patches of a convolution's input: a product with a matrix is a convolution with that kernel.

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
        if len(kernel) < self.module.out_channels:
            # The next product copies these narrow rows, or multiplies them batch by batch with different last bits,
            # depending on whether its matrix trains. Then a loaded adapter would not equal the saved one bit for bit.
            y = y.contiguous()
        return y.unflatten(-1, (groups, -1)) if groups > 1 else y

    def scale(self, vector: Tensor) -> Patches:
        return replace(self, scales=vector if self.scales is None else self.scales * vector)

    def dropout(self, probability: float) -> Patches:
        return replace(self, x=F.dropout(self.x, probability))

    def materialise(self) -> Tensor:
        size = self.module.weight[0].numel()
        return self.matmul(torch.eye(size, device=self.x.device, dtype=self.x.dtype))
