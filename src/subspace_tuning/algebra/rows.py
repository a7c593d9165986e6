"""Rows that an expression is applied to: a tensor of rows, or a source that only products can make real.

An embedding's input is a one-hot matrix and a convolution's input a matrix of patches. Neither is ever written
out: a *row source* knows how to multiply itself by a matrix, and everything after that first product is a tensor.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor


@runtime_checkable
class RowSource(Protocol):
    """Rows of width n that exist only as products. Each call returns new rows and changes nothing."""

    def matmul(self, matrix: Tensor) -> Tensor:
        """Return the rows times ``matrix`` (n x q): a tensor with last dimension q."""
        ...

    def scale(self, vector: Tensor) -> RowSource:
        """Return the rows times ``diag(vector)``, with ``vector`` of length n."""
        ...

    def materialise(self) -> Tensor:
        """Return the rows themselves, a tensor with last dimension n."""
        ...


Rows: TypeAlias = "Tensor | RowSource"


def matmul(x: Rows, matrix: Tensor) -> Tensor:
    """Multiply rows by a matrix in the rows' precision, so that a float32 factor does not widen a bfloat16 step."""
    if isinstance(x, Tensor):
        return x @ matrix.to(x.dtype)
    return x.matmul(matrix)


def scale(x: Rows, vector: Tensor) -> Rows:
    """Multiply rows by a diagonal matrix, given as its vector, in the rows' precision."""
    return x * vector.to(x.dtype) if isinstance(x, Tensor) else x.scale(vector)


def as_tensor(x: Rows) -> Tensor:
    """Return the rows as a tensor."""
    return x if isinstance(x, Tensor) else x.materialise()
