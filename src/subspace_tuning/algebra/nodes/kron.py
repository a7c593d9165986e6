"""``kron(A, C1, C2)``: the Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..shapes import NodeShapes
from .base import Environment, Expression, MatrixNode, dense
from .language import Call, Typed, function

AXES = 3  # of a convolution's window, at most


@dataclass(frozen=True)
class Kron(MatrixNode):
    """``kron(A, C1, C2)``: the Kronecker product, which acts on each axis of a convolution's patch by itself."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.factors

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

    @property
    def linear_in(self) -> tuple[int, ...]:
        return tuple(range(len(self.factors)))

    @property
    def zero_when(self) -> tuple[tuple[int, ...], ...]:
        return tuple((index,) for index in range(len(self.factors)))

    @property
    def identity_when(self) -> tuple[int, ...]:
        return tuple(range(len(self.factors)))


@function("kron", 2, 1 + AXES, f"a factor for the channels and one for each of 1 to {AXES} axes")
def _read(call: Call) -> Typed:
    """Read kron(A, C1, ...): one factor for the channels of a patch, and one for each axis of its window."""
    shapes = [("c", "r"), *((f"w{axis}", f"v{axis}") for axis in range(1, len(call.arguments)))]
    factors = []
    for index, shape in enumerate(shapes):
        factors.append(call.matrix(index).node)
        call.unify(index, call.known(*shape))
    return Typed(Kron(tuple(factors)), call.known("n", "g"))
