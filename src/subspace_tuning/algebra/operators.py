"""Frozen matrices known only through their products, such as the weight of a quantised layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .nodes import Expression

TENSORS = (Tensor, nn.Parameter)
"""The common types in an environment, which are not operators."""


class Operator(ABC):
    """W in an environment, in place of a tensor.

    A formula that only multiplies by W never reads its entries. One that computes with them (see
    :func:`reads_entries`) dequantises them at every use, and nothing keeps them.

    Attributes:
        shape: n and m.
        dtype: of the entries.
        device: where they are stored.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """Return the rows x (... x n) times the matrix (... x m), in the precision of x; differentiable in x."""

    def multiply_transposed(self, y: Tensor) -> Tensor:
        """Return the rows y (... x m) times the transposed matrix (... x n), in the precision of y."""
        return y @ self.dequantise().T.to(y.dtype)

    @abstractmethod
    def dequantise(self) -> Tensor:
        """Return the entries, n x m, as a tensor of its own."""


def reads_entries(expression: Expression, differentiably: bool = False) -> bool:
    """Return whether applying an expression to rows needs more than products with W.

    Args:
        expression: a formula, as evaluated.
        differentiably: ignore whatever the gradient treats as a constant, such as column norms.
    """
    if "W" not in expression.names or not expression.children:
        return False
    if expression.needs_entries or (expression.reads_norms and not differentiably):
        return True
    return any(reads_entries(child, differentiably) for child in expression.children)
