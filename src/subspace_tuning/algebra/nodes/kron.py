"""Kronecker products: ``kron(A, B)`` of W's shape, and ``kron(A, C1, C2)`` on the window of a convolution.

Names decide which: a factor behind the first is a window's if it is named C, C1, C2, ...
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..rows import Rows
from ..shapes import NodeShapes
from .base import Environment, Expression, dense
from .common import FactorsNode, MatrixNode
from .language import Call, Typed, function
from .planning import Planner, Step

AXES = 3  # of a convolution's window, at most
_WINDOW = re.compile(r"C\d*(_?0)?")


@dataclass(frozen=True, eq=False)
class Kron(FactorsNode, MatrixNode):
    """``kron(A, C1, C2)``: the Kronecker product, which acts on each axis of a convolution's patch by itself."""

    factors: tuple[Expression, ...]

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Kron(children)

    def compact(self, env: Environment) -> Tensor:
        return reduce(torch.kron, (dense(factor, env) for factor in self.factors))

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

    Rows meet the factors one after the other, each row as an n1 x n2 matrix X: A.T @ X @ B.
    """

    forms_itself = False

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Kronecker(children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        if not isinstance(x, Tensor):
            return super().apply(x, env)
        A, B = (dense(factor, env).to(x.dtype) for factor in self.factors)
        middle = x.reshape(*x.shape[:-1], A.shape[0], B.shape[0]) @ B
        return (middle.transpose(-1, -2) @ A).transpose(-1, -2).flatten(-2)

    def step(self, planner: Planner) -> Step:
        (n1, m1), (n2, m2) = map(planner.shape, self.factors)
        left, right = map(planner.form, self.factors)
        trains = [planner.trains(factor) for factor in self.factors]
        cost = left[0] + right[0] + planner.elements(planner.rows * m2 * (n1 + m1))  # the transposed copies
        cost += planner.product(planner.rows * n1, n2, m2, True, trains[1])
        cost += planner.product(planner.rows * m2, n1, m1, True, trains[0])
        return cost, Kronecker((left[1], right[1]))


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
