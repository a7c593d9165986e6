"""``X * Y``: the element-wise product."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from ..shapes import NodeShapes
from . import structure as S
from .base import PRODUCT, Environment, Expression, dense
from .common import FactorsNode, MatrixNode


@dataclass(frozen=True, eq=False)
class Hadamard(FactorsNode, MatrixNode):
    """The element-wise product of matrices, or of vectors. It is diagonal if one of them is."""

    factors: tuple[Expression, ...]

    precedence = PRODUCT
    holds_weight = False
    latex_in_brackets = True

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return build.times(*children)

    def compact(self, env: Environment) -> Tensor:
        if self.diagonal:
            return reduce(operator.mul, (_diagonal_of(factor, env) for factor in self.factors))
        result = dense(self.factors[0], env)  # a loop makes fewer calls than a generator
        for factor in self.factors[1:]:
            result = result * dense(factor, env)
        return result

    def __str__(self) -> str:
        return " * ".join([factor.inside(PRODUCT) for factor in self.factors])

    def latex(self) -> str:
        return r" \odot ".join(factor.inside_latex() for factor in self.factors)

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(next(factor for factor in self.factors if not factor.is_shapeless))

    def _structure(self) -> S.Structure:
        return S.of_hadamard([factor.structure for factor in self.factors])


def _diagonal_of(node: Expression, env: Environment) -> Tensor:
    return node.compact(env) if node.diagonal else node.compact(env).diagonal()


from . import build  # noqa: E402 (normal form is built from the class above)
