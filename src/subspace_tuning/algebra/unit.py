"""Column normalisation, with the norms taken from the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import rows as R
from .kernels import one_for_zero
from .nodes import Diag, Environment, Expression, Identity, Product, Scale, Sum, dense
from .rows import Rows


@dataclass(frozen=True)
class Unit(Expression):
    """A matrix with its columns scaled to norm 1.

    The norms are constants to the gradient, as in DoRA (arXiv 2402.09353, section 4.3).
    """

    node: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    def apply(self, x: Rows, env: Environment) -> Rows:
        y = R.as_tensor(self.node.apply(x, env))
        return y / column_norms(self.node, env).to(y.dtype)

    def compact(self, env: Environment) -> Tensor:
        matrix = dense(self.node, env)
        return matrix / column_norms(self.node, env).to(matrix.dtype)

    def __str__(self) -> str:
        return f"unit({self.node})"


@dataclass(frozen=True)
class InverseNorms(Diag):
    """Plan only: the diagonal matrix by which a matrix X has columns of norm 1, so unit(X) = X @ InverseNorms(X)."""

    def compact(self, env: Environment) -> Tensor:
        return column_norms(self.node, env).reciprocal()

    def __str__(self) -> str:
        return f"1/norms({self.node})"


def unit(node: Expression) -> Expression:
    """Return the matrix with its columns scaled to norm 1."""
    return node if isinstance(node, Identity) else Unit(node)


def column_norms(node: Expression, env: Environment) -> Tensor:
    """Return the norms of the matrix's columns, detached, in float32 or wider; 1 for a column of zeros.

    For a sum of terms the squares are sum_ij <T_i, T_j> column by column, and a low-rank term L @ R enters through
    (M.T @ L).T * R and (L1.T @ L2) @ R2 * R1: it is never multiplied out.
    """
    device = next(value.device.type for value in env.values() if isinstance(value, Tensor))
    with torch.autocast(device, enabled=False):
        terms = [_split(term, env) for term in (node.terms if isinstance(node, Sum) else (node,))]
        total = torch.zeros(())
        for i, left in enumerate(terms):
            total = total + _inner(left, left)
            for right in terms[i + 1 :]:
                total = total + 2.0 * _inner(left, right)
        return one_for_zero(total.detach().clamp_min(0.0).sqrt())


def _split(term: Expression, env: Environment) -> tuple[Tensor | None, Tensor]:
    """Return (L, R) with term = L @ R, L None for the identity."""
    if isinstance(term, Scale) and isinstance(term.node, Product):
        left, right = _split(term.node, env)
        return left, right * term.value(env)
    if isinstance(term, Product) and not term.factors[0].diagonal:
        left, right = dense(term.factors[0], env), dense(Product(term.factors[1:]), env)
        if left.shape[1] < min(left.shape[0], right.shape[1]):
            return _detached(left), _detached(right)
    return None, _detached(dense(term, env))


def _inner(a: tuple[Tensor | None, Tensor], b: tuple[Tensor | None, Tensor]) -> Tensor:
    """Return the inner products of the columns of two split terms."""
    (a_left, a_right), (b_left, b_right) = a, b
    if a_left is None and b_left is None:
        return (a_right * b_right).sum(0)
    if b_left is None:
        return _inner(b, a)
    # A BLAS is several times faster if the narrow matrix lies.
    middle = b_left.T.contiguous() @ a_right if a_left is None else (b_left.T @ a_left) @ a_right
    return (middle * b_right).sum(0)


def _detached(matrix: Tensor) -> Tensor:
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
