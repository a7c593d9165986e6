"""``diag(v)``: the diagonal matrix of a vector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..shapes import Dimension, NodeShapes
from .base import Environment, Expression
from .build import as_vectors
from .common import DiagonalNode, UnaryNode
from .language import Call, Typed, function


@dataclass(frozen=True, eq=False)
class Diag(UnaryNode, DiagonalNode):
    """``diag(v)``: the diagonal matrix of a vector."""

    node: Expression

    linear_in = (0,)
    zero_when = ((0,),)
    identity_when = (0,)

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env)

    def __str__(self) -> str:
        return f"diag({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{diag}}({self.node.latex()})"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes(self.node)


def diag(vector: Expression) -> Diag:
    """Return the diagonal matrix of a vector."""
    return Diag(as_vectors(vector))


@function("diag")
def _read(call: Call) -> Typed:
    length = Dimension()
    return Typed(diag(call.vector(0, length)), (length, length))
