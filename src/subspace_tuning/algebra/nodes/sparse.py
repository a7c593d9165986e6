"""``M * Delta``: sparse entries under a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..latex import name_in_latex
from ..operators import Operator
from ..shapes import NodeShapes, Shape
from .base import PRODUCT, Environment
from .common import MatrixNode
from .structure import Structure


@dataclass(frozen=True, eq=False)
class Sparse(MatrixNode):
    """``M * Delta``: a matrix like W that is zero outside a mask.

    The environment holds the mask as the int64 flat indices of its k entries and Delta as their k values. The parser
    reads it as an element-wise product (see :func:`.build.times`).
    """

    mask: str
    entries: str

    precedence = PRODUCT
    latex_in_brackets = True
    drawn_start = "zeros"
    linear_in = ()
    zero_when = ()
    identity_when = ()

    @property
    def own_names(self) -> tuple[str, ...]:
        return (self.mask, self.entries)

    def held_shape(self, name: str, shape: Shape) -> Shape:
        return ("p",)

    def compact(self, env: Environment) -> Tensor:
        weight, indices, values = env["W"], env[self.mask], env[self.entries]
        assert isinstance(weight, (Tensor, Operator)) and isinstance(indices, Tensor) and isinstance(values, Tensor)
        columns = weight.shape[1]
        rows = torch.div(indices, columns, rounding_mode="floor")
        zeros = torch.zeros(weight.shape, dtype=values.dtype, device=weight.device)
        return zeros.index_put((rows, indices % columns), values)

    def __str__(self) -> str:
        return f"{self.mask} * {self.entries}"

    def latex(self) -> str:
        return rf"{name_in_latex(self.mask)} \odot {name_in_latex(self.entries)}"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes.named("W")

    def _structure(self) -> Structure:
        return Structure.SPARSE
