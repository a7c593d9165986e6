"""Kronecker products: ``kron(A, B)`` of W's shape, and ``kron(A, C1, C2)`` on the window of a convolution.

Names decide which: a factor after the first belongs to the window if it is named C, C1, C2, ...
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression, dense
from .common import FactorsNode, MatrixNode
from .composite import Product
from .language import Call, Typed, function
from .planning import Planner, Step

AXES = 3  # of a convolution's window, at most
_WINDOW = re.compile(r"C\d*(_?0)?")


@dataclass(frozen=True, eq=False)
class Kron(FactorsNode, MatrixNode):
    """``kron(A, C1, C2)``: the Kronecker product, which acts on each axis of a convolution's patch separately."""

    factors: tuple[Expression, ...]

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Kron(children)

    def compact(self, env: Environment) -> Tensor:
        factors = [dense(factor, env) for factor in self.factors]
        if "W" in env and R.lies_transposed(env["W"]):  # so does the product then
            return reduce(_kronecker, (factor.T.contiguous() for factor in factors)).T
        return reduce(_kronecker, (factor.contiguous() for factor in factors))

    def __str__(self) -> str:
        return f"kron({', '.join(map(str, self.factors))})"

    def latex(self) -> str:
        return "(" + r" \otimes ".join(factor.inside_latex() for factor in self.factors) + ")"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        rows, columns = zip(*map(shapes, self.factors), strict=True)
        return math.prod(rows), math.prod(columns)


@dataclass(frozen=True, eq=False)
class Kronecker(Kron):
    """``kron(A, B)`` of W's own shape: A is n1 x m1 and B is n2 x m2, with n = n1 n2 and m = m1 m2.

    The factors are applied in turn, with each row as an n1 x n2 matrix X: A.T @ X @ B. If B is a product, A is applied
    between two of its parts, where the rows are narrow: A.T @ (X @ low) @ high.
    """

    forms_itself = False
    scaled_child = 0

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Kronecker(children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        if not isinstance(x, Tensor):
            return super().apply(x, env)
        A = dense(self.factors[0], env).to(x.dtype)
        low, *high = (dense(factor, env).to(x.dtype) for factor in self.factors[1].factored)
        # The columns of low come first, before the rows, so that A and high need no copy.
        middle = low.T @ x.reshape(-1, len(low)).T
        middle = middle.view(-1, len(A)) @ A
        if high:
            y = middle.view(low.shape[1], -1).T @ reduce(torch.matmul, high)
        else:
            y = middle.view(low.shape[1], -1, A.shape[1]).permute(1, 2, 0)
        return y.reshape(*x.shape[:-1], -1)

    def step(self, planner: Planner) -> Step:
        parts = self.factors[1].factored
        cuts = range(1, len(parts) + 1) if planner.choose else (1,)
        return min((self._cut(planner, parts[:cut], parts[cut:]) for cut in cuts), key=lambda option: option[0])

    def _cut(self, planner: Planner, *parts: tuple[Expression, ...]) -> Step:
        """Return the step that multiplies out the second factor's parts except at one cut, if there is one."""
        first, (low, *high) = self.factors[0], [Product(part) for part in parts if part]
        (n1, m1), (n2, width), m2 = planner.shape(first), planner.shape(low), planner.shape(self.factors[1])[1]
        costs, formed = zip(*map(planner.form, (first, low, *high)), strict=True)
        cost = sum(costs) + planner.product(planner.rows * n1, n2, width, True, planner.trains(low))
        cost += planner.product(planner.rows * width, n1, m1, True, planner.trains(first))
        if high:
            cost += planner.product(planner.rows * m1, width, m2, True, planner.trains(high[0]))
        else:
            cost += planner.elements(planner.rows * m1 * m2)  # a copy moves the columns of low after the rows
        return cost, Kronecker((formed[0], Product(formed[1:])))


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Like torch.kron, which fails on some sizes in a transposed layout."""
    (n1, m1), (n2, m2) = left.shape, right.shape
    return (left[:, None, :, None] * right[:, None]).reshape(n1 * n2, m1 * m2)


def kron(*factors: Expression) -> Kron:
    """Return the Kronecker product of two factors, or of a channel factor and one factor per window axis."""
    return Kron(factors)


@function("kron", 2, 1 + AXES, f"two factors, or one for the channels and one for each of 1 to {AXES} axes")
def _read(call: Call) -> Typed:
    """Read kron(A, B), or kron(A, C1, ...): a factor for a patch's channels and one for each axis of its window."""
    factors = tuple(call.matrix(index).node for index in range(len(call.arguments)))
    windows = len(factors) > 2 or _WINDOW.fullmatch(str(factors[1])) is not None
    shapes = [("n1", "m1"), ("n2", "m2")]
    if windows:
        shapes = [("c", "r"), *((f"w{axis}", f"v{axis}") for axis in range(1, len(factors)))]
    for index, shape in enumerate(shapes):
        call.unify(index, call.known(*shape))
    return Typed(Kron(factors), call.known("n", "g")) if windows else Typed(Kronecker(factors), call.known("n", "m"))
