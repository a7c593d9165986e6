"""Base classes of nodes: by how they are applied to rows, or for nodes over one child."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression
from .planning import Planner, Step
from .structure import DIAGONAL, Structure


class MultilinearNode(Expression):
    """A node that is linear in each child, zero if one of them is, and the identity if all are."""

    @property
    def linear_in(self) -> tuple[int, ...]:
        return tuple(range(len(self.children)))

    @property
    def zero_when(self) -> tuple[tuple[int, ...], ...]:
        return tuple((index,) for index in range(len(self.children)))

    @property
    def identity_when(self) -> tuple[int, ...]:
        return tuple(range(len(self.children)))


class FactorsNode(MultilinearNode):
    """A product of either kind, with any number of factors."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.factors


class MatrixNode(Expression):
    """A node applied by multiplying the rows by its formed matrix, or by the vector of its diagonal."""

    forms_itself = True
    linear_map = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env)) if self.diagonal else R.matmul(x, self.compact(env))

    def step(self, planner: Planner) -> Step:
        return planner.by_matrix(self)[0], self


class DiagonalNode(Expression):
    """A diagonal matrix, applied as its vector."""

    linear_map = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env))

    def step(self, planner: Planner) -> Step:
        return planner.by_matrix(self)[0], self

    def _structure(self) -> Structure:
        return DIAGONAL


class UnaryNode(Expression):
    """A node over one child."""

    node: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)


class EntrywiseNode(UnaryNode, MatrixNode):
    """A matrix computed from the entries of another one of the same shape."""

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.node)


@dataclass(frozen=True, eq=False)
class PlanNode(UnaryNode):
    """A node that occurs only in plans, equal to the node it wraps."""

    node: Expression

    forms_itself = True
    linear_map = True
    linear_in = (0,)
    zero_when = ((0,),)
    identity_when = (0,)

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.node)

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env)

    def latex(self) -> str:
        return self.node.latex()
