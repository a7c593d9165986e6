"""The rows to which an expression is applied: a tensor, or a source known only through products.

An embedding's input is a one-hot matrix and a convolution's input a matrix of patches. Neither is ever materialised: a
*row source* knows how to multiply itself by a matrix, and everything after that first product is a tensor.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class RowSource(Protocol):
    """Rows of width n that exist only as products. Each call returns new rows and changes nothing."""

    def matmul(self, matrix: Tensor) -> Tensor:
        """Return the rows times ``matrix`` (n x q): a tensor with last dimension q."""
        ...

    def scale(self, vector: Tensor) -> RowSource:
        """Return the rows times ``diag(vector)``, with ``vector`` of length n."""
        ...

    def dropout(self, probability: float) -> RowSource:
        """Return the rows of an input after dropout."""
        ...

    def materialise(self) -> Tensor:
        """Return the rows themselves, a tensor with last dimension n."""
        ...


Rows: TypeAlias = "Tensor | RowSource"


def matmul(x: Rows, matrix: Tensor) -> Tensor:
    """Multiply rows by a matrix in the rows' precision, so that a float32 factor does not widen a bfloat16 step."""
    if isinstance(x, Tensor):
        return x @ (matrix if matrix.dtype is x.dtype else matrix.to(x.dtype))
    return x.matmul(matrix)


def scale(x: Rows, vector: Tensor) -> Rows:
    """Multiply rows by a diagonal matrix, given as its vector, in the rows' precision.

    A vector without dimensions is a multiple of the identity.
    """
    if not vector.ndim:
        x = as_tensor(x)
        return x * vector.to(x.dtype)
    return scale_rows(x, vector) if isinstance(x, Tensor) else x.scale(vector)


def dropout(x: Rows, probability: float) -> Rows:
    """Apply dropout to the input from which the rows are made."""
    return F.dropout(x, probability) if isinstance(x, Tensor) else x.dropout(probability)


_FEW = 2**16  # numbers up to which mixed precisions are as fast on the CPU


def scale_rows(x: Tensor, vector: Tensor) -> Tensor:
    """Multiply rows by a diagonal matrix and keep their precision.

    A scale of higher precision loses nothing: bfloat16 has no number between 1 and 1.0078.
    """
    if not is_narrower(x, vector):
        return x * (vector if vector.dtype is x.dtype else vector.to(x.dtype))
    if x.device.type == "cpu" and x.numel() > _FEW:  # mixed-precision products are slow there
        coarse = vector.to(x.dtype)
        return torch.addcmul(x * coarse, x, (vector - coarse).to(x.dtype))
    return (x * vector).to(x.dtype)


def scale_rows_(x: Tensor, vector: Tensor) -> Tensor:
    """Like ``scale_rows``, in place."""
    if is_narrower(x, vector) and x.device.type == "cpu" and x.numel() > _FEW:
        return x.copy_(scale_rows(x, vector))
    return x.mul_(vector)  # rounded once


def is_narrower(x: Tensor, vector: Tensor) -> bool:
    """Return whether rows have a lower precision than their scale."""
    return x.dtype.itemsize < vector.dtype.itemsize


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or the precision itself if it is wider."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def as_tensor(x: Rows) -> Tensor:
    """Return the rows as a tensor."""
    return x if isinstance(x, Tensor) else x.materialise()


def lies_transposed(matrix: object) -> bool:
    """Return whether this is the transpose of a row-major matrix, as W of a linear layer is."""
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        return False
    down, across = matrix.stride()
    return down == 1 and across != 1
