"""Tensors in compact form: two dimensions for a matrix, one for a diagonal, none for a multiple of the identity."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_dim(value: object) -> Tensor:
    """Return a number as a tensor without dimensions, which takes the precision of the other operand."""
    assert isinstance(value, (float, int))
    return torch.tensor(value, dtype=torch.float64)


def multiplied(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """Multiply two matrices in compact form, in the wider of their precisions.

    The result has W's memory layout, ``transposed`` or not: adding to W in another layout takes ten times as long.
    """
    if not (left.ndim and right.ndim):  # a multiple of the identity
        return left * right
    if left.ndim < 2:
        return left.unsqueeze(-1) * right if left.ndim < right.ndim == 2 else left * right
    if right.ndim < 2:
        return left * right
    if left.dtype is not right.dtype:
        dtype = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(dtype), right.to(dtype)
    return (right.T @ left.T).T if transposed else left @ right


def added(left: Tensor, right: Tensor) -> Tensor:
    """Add two matrices in compact form."""
    if (left.ndim < 2) == (right.ndim < 2):
        return left + right
    matrix, diagonal = (left, right) if left.ndim == 2 else (right, left)
    if not diagonal.ndim:  # a multiple of the identity, in the precision of the matrix
        diagonal = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device) * diagonal
    return matrix + torch.diag(diagonal)
