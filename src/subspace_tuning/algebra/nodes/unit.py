"""Column normalisation, with the norms taken from the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import PRODUCT, Environment, Expression, dense
from .common import DiagonalNode, PlanNode, UnaryNode
from .composite import Product, Scale, Sum, multiplied_out
from .language import Call, Typed, function
from .leaves import Identity
from .planning import Planner, Step
from .structure import Structure


@dataclass(frozen=True)
class Unit(UnaryNode):
    """A matrix with its columns scaled to norm 1.

    The norms are constants to the gradient, as in DoRA (arXiv 2402.09353, section 4.3).
    """

    node: Expression

    linear_map = True
    rows_enter = 0
    linear_in = ()
    zero_when = ((0,),)
    identity_when = (0,)

    @property
    def factored(self) -> tuple[Expression, ...]:
        return self.node, InverseNorms(self.node)

    @property
    def apart(self) -> Expression:
        return Divided(self.node, Norms(self.node))

    def apply(self, x: Rows, env: Environment) -> Rows:
        return divided(self.node.apply(x, env), column_norms(self.node, env))

    def compact(self, env: Environment) -> Tensor:
        matrix = dense(self.node, env)
        return matrix / column_norms(self.node, env).to(matrix.dtype)

    def __str__(self) -> str:
        return f"unit({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{unit}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.node)

    def step(self, planner: Planner) -> Step:
        cost, inner = planner.apply(self.node)
        n, m = planner.shape(self)
        return cost + planner.elements(planner.rows * m) + planner.elements(n * m), Unit(inner)

    def _structure(self) -> Structure:
        kept = Structure.LOW_RANK | Structure.BLOCK_DIAGONAL | Structure.SPARSE
        return Structure.NORMALISED_COLUMNS | self.node.structure & kept


@dataclass(frozen=True)
class Norms(UnaryNode, DiagonalNode):
    """Plan only: the diagonal matrix of a matrix's column norms."""

    node: Expression

    linear_in = ()
    zero_when = ()
    identity_when = ()

    def compact(self, env: Environment) -> Tensor:
        return column_norms(self.node, env)

    def __str__(self) -> str:
        return f"norms({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{norms}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        columns = shapes(self.node)[1]
        return columns, columns


@dataclass(frozen=True)
class InverseNorms(Norms):
    """Plan only: the diagonal matrix by which a matrix X has columns of norm 1, so unit(X) = X @ InverseNorms(X)."""

    def compact(self, env: Environment) -> Tensor:
        return column_norms(self.node, env).reciprocal()

    def __str__(self) -> str:
        return f"1/{super().__str__()}"

    def latex(self) -> str:
        return rf"{super().latex()}^{{-1}}"


@dataclass(frozen=True)
class Divided(PlanNode):
    """Plan only: a matrix with its columns divided by the entries of a diagonal matrix."""

    by: Expression

    forms_itself = False

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.node, self.by

    def apply(self, x: Rows, env: Environment) -> Rows:
        return divided(self.node.apply(x, env), self.by.compact(env))

    def compact(self, env: Environment) -> Tensor:
        return dense(self.node, env) / self.by.compact(env)

    def __str__(self) -> str:
        return f"{self.node.inside(PRODUCT)} / {self.by}"

    def step(self, planner: Planner) -> Step:
        raise NotImplementedError("a plan is prepared after it is chosen")


def divided(x: Rows, vector: Tensor) -> Tensor:
    """Return rows with each column divided by an entry of a vector."""
    y = R.as_tensor(x)
    return y / vector.to(y.dtype)


def unit(node: Expression) -> Expression:
    """Return the matrix with its columns scaled to norm 1."""
    return node if isinstance(node, Identity) else Unit(node)


@function("unit")
def _read(call: Call) -> Typed:
    matrix = call.sized_matrix(0)
    return Typed(unit(matrix.node), matrix.shape)


def one_for_zero(norms: Tensor) -> Tensor:
    """Return the norms of columns; 1 for a column of zeros, which no scale can change."""
    return torch.where(norms > 0, norms, torch.ones_like(norms))


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
        left, right = dense(term.factors[0], env), multiplied_out(term.factors[1:], env)
        right = right if right.dim() == 2 else torch.diag(right)
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
    # BLAS is several times faster if the narrow matrix is contiguous as k x rows.
    middle = b_left.T.contiguous() @ a_right if a_left is None else (b_left.T @ a_left) @ a_right
    return (middle * b_right).sum(0)


def _detached(matrix: Tensor) -> Tensor:
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
