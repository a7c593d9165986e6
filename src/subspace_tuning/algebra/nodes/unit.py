"""Column normalisation, with the norms computed from the factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import PRODUCT, Environment, Expression, dense
from .common import DiagonalNode, PlanNode, UnaryNode
from .compact import added
from .composite import Product, Scale, Sum, multiplied_out
from .language import Call, Typed, function
from .leaves import Identity
from .planning import Planner, Step
from .structure import Structure


@dataclass(frozen=True, eq=False)
class _ByNorms(UnaryNode):
    """A node that uses the column norms of a matrix."""

    node: Expression
    nests: bool = field(init=False, repr=False)  # whether the matrix itself contains norms

    linear_map = True
    linear_in = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "nests", any(isinstance(part, _ByNorms) for part in self.node.walk()))

    def norms(self, env: Environment) -> Tensor:
        return column_norms(self.node, env, self.nests)


@dataclass(frozen=True, eq=False)
class Unit(_ByNorms):
    """A matrix with its columns scaled to norm 1.

    The gradient treats the norms as constants, as in DoRA (arXiv 2402.09353, section 4.3).
    """

    rows_enter = 0
    reads_norms = True
    zero_when = ((0,),)
    identity_when = (0,)

    @property
    def factored(self) -> tuple[Expression, ...]:
        return self.node, InverseNorms(self.node)

    @property
    def apart(self) -> Expression:
        return Divided(self.node, Norms(self.node))

    def apply(self, x: Rows, env: Environment) -> Rows:
        return divided(self.node.apply(x, env), self.norms(env))

    def compact(self, env: Environment) -> Tensor:
        matrix = dense(self.node, env)
        norms = norms_of(matrix) if self.nests else self.norms(env)
        return matrix / norms.to(matrix.dtype)

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


@dataclass(frozen=True, eq=False)
class Norms(_ByNorms, DiagonalNode):
    """Plans only: the diagonal matrix of a matrix's column norms."""

    zero_when = ()
    identity_when = ()

    def compact(self, env: Environment) -> Tensor:
        return self.norms(env)

    def __str__(self) -> str:
        return f"norms({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{norms}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        columns = shapes(self.node)[1]
        return columns, columns


@dataclass(frozen=True, eq=False)
class InverseNorms(Norms):
    """Plans only: the diagonal matrix that scales the columns of X to norm 1: unit(X) = X @ InverseNorms(X)."""

    def compact(self, env: Environment) -> Tensor:
        return self.norms(env).reciprocal()

    def __str__(self) -> str:
        return f"1/{super().__str__()}"

    def latex(self) -> str:
        return rf"{super().latex()}^{{-1}}"


@dataclass(frozen=True, eq=False)
class Divided(PlanNode):
    """Plans only: a matrix with its columns divided by the entries of a diagonal matrix."""

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
        raise NotImplementedError("a plan is prepared only after it is chosen")


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
    """Return the column norms; 1 for a zero column, which no scale changes."""
    return norms.masked_fill(norms == 0, 1.0)


def column_norms(node: Expression, env: Environment, formed: bool = False) -> Tensor:
    """Return the norms of the matrix's columns, detached, in float32 or wider; 1 for a column of zeros.

    The squared norms of M + L @ R are those of M and of L @ R plus twice <M, L @ R>, column by column. Low-rank terms
    enter together, through (M.T @ L).T * R and (L.T @ L) @ R * R, without being multiplied out, unless everything is
    ``formed``: each norm within a norm would otherwise double the work.
    """
    device = next(value.device.type for value in env.values() if isinstance(value, Tensor))
    with torch.autocast(device, enabled=False):
        if formed:
            return norms_of(dense(node, env))
        terms = _dense_and_narrow([_split(term, env) for term in (node.terms if isinstance(node, Sum) else (node,))])
        total = torch.zeros(())
        for i, left in enumerate(terms):
            total = total + _inner(left, left)
            for right in terms[i + 1 :]:
                total = total + 2.0 * _inner(left, right)
        return one_for_zero(total.detach().clamp_min(0.0).sqrt())


def norms_of(matrix: Tensor) -> Tensor:
    """Return the norms of the columns, detached, in float32 or wider; 1 for a column of zeros."""
    return one_for_zero(torch.linalg.vector_norm(_detached(matrix), dim=0))


_Split: TypeAlias = "tuple[Tensor | None, Tensor]"
"""(L, R) represents the low-rank L @ R; (None, M) represents M in compact form."""


def _dense_and_narrow(terms: list[_Split]) -> list[_Split]:
    """Return the sum of terms as one matrix and one product of low rank; either may be missing."""
    narrow = [term for term in terms if term[0] is not None]
    dense = [right for left, right in terms if left is None]
    if len(narrow) > 1:
        left, right = torch.cat([left for left, _ in narrow if left is not None], 1), torch.cat([r for _, r in narrow])
        narrow = [(left, right)]
        if left.shape[1] >= min(left.shape[0], right.shape[1]):
            narrow, dense = [], [*dense, left @ right]
    if dense:
        matrix = reduce(added, dense)
        return [(None, matrix if matrix.ndim == 2 else torch.diag(matrix)), *narrow]
    return narrow


def _split(term: Expression, env: Environment) -> _Split:
    """Return a term as a low-rank product, or unchanged."""
    if isinstance(term, Scale) and isinstance(term.node, Product):
        left, right = _split(term.node, env)
        return left, right * term.value(env)
    if isinstance(term, Product) and not term.factors[0].diagonal:
        left, right = dense(term.factors[0], env), multiplied_out(term.factors[1:], env)
        right = right if right.dim() == 2 else torch.diag(right)
        if left.shape[1] < min(left.shape[0], right.shape[1]):
            return _detached(left), _detached(right)
    return None, _detached(term.compact(env))


def _inner(a: _Split, b: _Split) -> Tensor:
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
    return matrix.detach().to(R.wide(matrix.dtype))
