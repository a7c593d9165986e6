"""``X * Y``: the element-wise product."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..shapes import NodeShapes
from . import structure as S
from .base import PRODUCT, Environment, Expression, dense
from .common import MatrixNode


@dataclass(frozen=True)
class Hadamard(MatrixNode):
    """The element-wise product of two matrices. Where one of them is diagonal, so is the product."""

    left: Expression
    right: Expression

    precedence = PRODUCT
    holds_weight = False
    latex_in_brackets = True
    linear_in = (0, 1)
    zero_when = ((0,), (1,))
    identity_when = (0, 1)

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return build.times(*children)

    def compact(self, env: Environment) -> Tensor:
        if self.diagonal:
            left, right = (
                side.compact(env) if side.diagonal else side.compact(env).diagonal() for side in self.children
            )
            return left * right
        return dense(self.left, env) * dense(self.right, env)

    def __str__(self) -> str:
        return f"{self.left.inside(PRODUCT)} * {self.right.inside(PRODUCT)}"

    def latex(self) -> str:
        return rf"{self.left.inside_latex()} \odot {self.right.inside_latex()}"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.right if self.left.is_shapeless else self.left)

    def _structure(self) -> S.Structure:
        return S.of_hadamard(self.left.structure, self.right.structure)


from . import build  # noqa: E402 (normal form is built from the class above)
