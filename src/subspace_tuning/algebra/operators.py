"""A frozen matrix that is multiplied without its entries being at hand, such as the weight of a quantised layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .nodes import Expression

TENSORS = (Tensor, nn.Parameter)
"""The types of what an environment mostly holds: no operators."""


class Operator(ABC):
    """What an environment may hold as W in place of a tensor.

    A formula that only multiplies with W never asks for the entries. One that computes with them (see
    :func:`reads_entries`) gets them anew at every use, and nothing keeps them.

    Attributes:
        shape: n and m.
        dtype: of the entries.
        device: of what holds them.
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
    """Return whether rows cannot be multiplied by an expression with products with W alone.

    Args:
        expression: a formula, as it is evaluated.
        differentiably: leave out what is a constant to the gradient, as column norms are.
    """
    if "W" not in expression.names or not expression.children:
        return False
    if expression.needs_entries or (expression.reads_norms and not differentiably):
        return True
    return any(reads_entries(child, differentiably) for child in expression.children)
