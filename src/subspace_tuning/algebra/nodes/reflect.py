"""Products of Householder reflections, as in HRA (arXiv 2405.17484)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression, dense
from .common import MatrixNode, UnaryNode
from .language import Call, Typed, function
from .leaves import Identity
from .planning import Planner, Step
from .structure import Structure


@dataclass(frozen=True, eq=False)
class Reflect(UnaryNode):
    """``reflect(A)``: H_1 H_2 ... H_r, n x n and orthogonal, with H_i = I - 2 v v.T / |v|^2 for the column v_i of A.

    It is I - A @ folded(A), so rows are multiplied by two narrow matrices and never by an n x n one. Zero columns
    reflect nothing.
    """

    node: Expression

    linear_map = True
    linear_in = ()
    zero_when = ()
    identity_when = ()
    identity_start = "paired"
    drawn_start = "kaiming_uniform"

    @property
    def opened(self) -> tuple[Expression, ...]:
        return Identity(), -(self.node @ Folded(self.node))

    def apply(self, x: Rows, env: Environment) -> Rows:
        V = dense(self.node, env)
        return R.as_tensor(x) - R.matmul(R.matmul(x, V), folded(V))

    def compact(self, env: Environment) -> Tensor:
        V = dense(self.node, env)
        Z = folded(V)
        return torch.eye(len(V), dtype=Z.dtype, device=V.device) - V.to(Z.dtype) @ Z

    def __str__(self) -> str:
        return f"reflect({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{reflect}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        rows = shapes(self.node)[0]
        return rows, rows

    def step(self, planner: Planner) -> Step:
        n, r = planner.shape(self.node)
        trains = planner.trains(self.node)
        cost, inner = Folded(self.node).form_step(planner)[0], planner.form(self.node)[1]
        cost += planner.product(planner.rows, n, r, True, trains) + planner.product(planner.rows, r, n, True, trains)
        return cost + planner.elements(planner.rows * n), Reflect(inner)

    def _structure(self) -> Structure:
        return Structure.ORTHOGONAL


@dataclass(frozen=True, eq=False)
class Folded(UnaryNode, MatrixNode):
    """Plans only: T A.T with the upper triangular T for which reflect(A) is I - A T A.T.

    Joffrin, Low and van de Geijn, "Accumulating Householder transformations, revisited", 2006.
    """

    node: Expression

    linear_in = ()
    zero_when = ()
    identity_when = ()

    def compact(self, env: Environment) -> Tensor:
        return folded(dense(self.node, env))

    def __str__(self) -> str:
        return f"folded({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{folded}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        rows, columns = shapes(self.node)
        return columns, rows

    def form_step(self, planner: Planner) -> Step:
        cost, inner = planner.form(self.node)
        n, r = planner.shape(self.node)
        trains = planner.trains(self.node)
        products = planner.product(r, n, r, trains, trains) + planner.product(r, r, n, trains, trains)
        return cost + products, Folded(inner)


def folded(V: Tensor) -> Tensor:
    """Return T V.T (r x n) for V (n x r), in float32 or wider: T's inverse is V.T V above half of its diagonal."""
    if torch.is_autocast_enabled(V.device.type):
        with torch.autocast(V.device.type, enabled=False):
            return folded(V)
    wide = V.to(R.wide(V.dtype))
    products = wide.T @ wide
    squares = products.diagonal()
    inverse = products.diagonal_scatter(squares / 2.0 + (squares == 0.0))  # a zero column stays zero
    solved: Tensor = torch.linalg.solve_triangular(inverse, wide.T, upper=True)  # does not read below the diagonal
    return solved


def reflect(vectors: Expression) -> Reflect:
    """Return the product of the Householder reflections in the columns of a matrix."""
    return Reflect(vectors)


@function("reflect")
def _read(call: Call) -> Typed:
    vectors = call.sized_matrix(0)
    return Typed(reflect(vectors.node), (vectors.shape[0], vectors.shape[0]))
