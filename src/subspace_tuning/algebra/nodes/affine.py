"""``affine(A, b)``: a matrix and a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rows as R
from ..rows import Rows
from ..shapes import NodeShapes
from .base import PRODUCT, SUM, Environment, Expression, NotLinearError
from .build import as_vectors
from .language import Call, Typed, function
from .planning import Planner, Step


@dataclass(frozen=True, eq=False)
class Affine(Expression):
    """``affine(A, b)``: the augmented matrix [A; b], the map x -> x @ A + b."""

    matrix: Expression
    bias: Expression

    linear_map = False
    rows_enter = 0
    linear_in = (0, 1)
    zero_when = ((0, 1),)
    identity_when = (0,)

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.matrix, self.bias)

    def apply(self, x: Rows, env: Environment) -> Rows:
        y = R.as_tensor(self.matrix.apply(x, env))
        return y + self.bias.compact(env).to(y.dtype)

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self} is a matrix and a bias, not one matrix")

    def __str__(self) -> str:
        return f"affine({self.matrix}, {self.bias})"

    def latex(self) -> str:
        return rf"\begin{{bmatrix}} {self.matrix.latex()} \\ {self.bias.latex()} \end{{bmatrix}}"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.matrix)

    def step(self, planner: Planner) -> Step:
        cost, matrix = planner.apply(self.matrix)
        return cost + planner.elements(planner.rows * planner.shape(self)[1]), Affine(matrix, self.bias)


@dataclass(frozen=True, eq=False)
class Carried(Expression):
    """Plans only: a vector, as a row, times a matrix: a bias passing through the factors after it."""

    vector: Expression
    matrix: Expression

    precedence = PRODUCT
    needs_entries = True
    linear_map = True
    linear_in = (0, 1)
    zero_when = ((0,), (1,))
    identity_when = ()

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.vector, self.matrix)

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the vector {self} is not a map")

    def compact(self, env: Environment) -> Tensor:
        vector, matrix = self.vector.compact(env), self.matrix.compact(env)
        if matrix.dim() < 2:
            return vector * matrix
        dtype = torch.promote_types(vector.dtype, matrix.dtype)
        return vector.to(dtype) @ matrix.to(dtype)

    def __str__(self) -> str:
        return f"{self.vector.inside(PRODUCT)} @ {self.matrix.inside(SUM)}"

    def latex(self) -> str:
        return f"{self.vector.inside_latex()} {self.matrix.inside_latex()}"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        columns = shapes(self.matrix)[1]
        return columns, columns

    def step(self, planner: Planner) -> Step:
        raise NotLinearError(f"the vector {self} is not a map")


def affine(matrix: Expression, bias: Expression) -> Affine:
    """Return the augmented matrix [matrix; bias]."""
    return Affine(matrix, as_vectors(bias))


@function("affine", 2)
def _read(call: Call) -> Typed:
    matrix = call.matrix(0)
    return Typed(affine(matrix.node, call.vector(1, matrix.shape[1])), matrix.shape)
