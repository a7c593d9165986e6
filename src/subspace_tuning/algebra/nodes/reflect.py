"""Products of Householder reflections, as in HRA (arXiv 2405.17484)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression, dense
from .common import UnaryNode
from .language import Call, Typed, function
from .planning import Planner, Step
from .structure import Structure
from .unit import one_for_zero


@dataclass(frozen=True, eq=False)
class Reflect(UnaryNode):
    """``reflect(A)``: H_1 H_2 ... H_r, n x n and orthogonal, with H_i = I - 2 v v.T / |v|^2 for the column v_i of A.

    It is I - A T A.T with T upper triangular (Joffrin, Low and van de Geijn, "Accumulating Householder transformations,
    revisited", 2006), so rows meet r columns twice and never an n x n matrix. A column of zeros reflects nothing.
    """

    node: Expression

    linear_map = True
    linear_in = ()
    zero_when = ()
    identity_when = ()
    identity_start = "paired"
    drawn_start = "kaiming_uniform"

    def apply(self, x: Rows, env: Environment) -> Rows:
        V, T = self._factors(env)
        narrow = R.matmul(R.matmul(x, V), T)
        return R.as_tensor(x) - R.matmul(narrow, V.T)

    def compact(self, env: Environment) -> Tensor:
        V, T = self._factors(env)
        return torch.eye(len(V), dtype=T.dtype, device=V.device) - V.to(T.dtype) @ T @ V.T.to(T.dtype)

    def _factors(self, env: Environment) -> tuple[Tensor, Tensor]:
        """Return V and T, the latter in float32 or wider: its inverse has half the squared norms on its diagonal."""
        V = dense(self.node, env)
        with torch.autocast(V.device.type, enabled=False):
            wide = V.to(torch.promote_types(V.dtype, torch.float32))
            products = wide.T @ wide
            halves = products.diagonal() / 2.0
            inverse = products.triu(1) + torch.diag(one_for_zero(halves))
            unit = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
            return V, torch.linalg.solve_triangular(inverse, unit, upper=True)

    def __str__(self) -> str:
        return f"reflect({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{reflect}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        rows = shapes(self.node)[0]
        return rows, rows

    def step(self, planner: Planner) -> Step:
        cost, inner = planner.form(self.node)
        n, r = planner.shape(self.node)
        trains = planner.trains(self.node)
        cost += planner.product(r, n, r, trains, trains) + planner.product(planner.rows, r, r, True, trains)
        cost += planner.product(planner.rows, n, r, True, trains) + planner.product(planner.rows, r, n, True, trains)
        return cost + planner.elements(planner.rows * n), Reflect(inner)

    def _structure(self) -> Structure:
        return Structure.ORTHOGONAL


@function("reflect")
def _read(call: Call) -> Typed:
    vectors = call.sized_matrix(0)
    return Typed(Reflect(vectors.node), (vectors.shape[0], vectors.shape[0]))
