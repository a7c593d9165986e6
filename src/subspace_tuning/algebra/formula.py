"""A formula: an expression together with the shapes of the tensors that its names stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from . import names
from .nodes import Activation, Affine, Expression, Sparse, substitute, symbol

Shape = tuple[str, ...]


class Sizes(NamedTuple):
    """The numbers behind the dimensions of a formula in one layer: W is n x m, the rank is r."""

    n: int
    m: int
    r: int

    @property
    def k(self) -> int:
        """Return the number of singular values of W."""
        return min(self.n, self.m)

    def of(self, shape: Shape) -> tuple[int, ...]:
        """Return a symbolic shape in numbers."""
        return tuple(getattr(self, dimension) for dimension in shape)


@dataclass(frozen=True)
class Formula:
    """phi(W) as an expression, with the symbolic shape of every name, over the dimensions n, m, r and k = min(n, m).

    A diagonal's shape is the length of its vector, a scalar's is empty. Made by :func:`subspace_tuning.algebra.parse`.
    """

    expression: Expression
    shapes: Mapping[str, Shape]

    def __str__(self) -> str:
        return str(self.expression)

    def __hash__(self) -> int:
        return hash(self.expression)

    @cached_property
    def evaluated(self) -> Expression:
        """The expression that is evaluated: ``rest`` is W - U_r @ S_r @ V_r.T, so that no copy of W's size is kept."""
        leading = symbol("U_r") @ symbol("S_r") @ symbol("V_r").T
        return substitute(self.expression, {"rest": symbol("W") - leading})

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """The names of the trainable factors, in reading order."""
        return tuple(name for name in self.expression.names if not names.is_frozen(name))

    @cached_property
    def spectral(self) -> tuple[str, ...]:
        """The names taken from W's singular value decomposition."""
        return tuple(name for name in self.evaluated.names if name in names.SPECTRAL_SHAPES)

    @cached_property
    def has_rank(self) -> bool:
        """Whether the shapes depend on r."""
        return any("r" in shape for shape in self.shapes.values())

    @cached_property
    def names_bias(self) -> bool:
        """Whether the bias is inside phi, so that the layer must not add it again."""
        return "b" in self.expression.names

    @cached_property
    def is_linear(self) -> bool:
        """Whether phi(W) is one matrix, or a matrix and a bias at the top."""
        inner = self.expression.matrix if isinstance(self.expression, Affine) else self.expression
        return not any(isinstance(node, (Activation, Affine)) for node in inner.walk())

    @cached_property
    def masked(self) -> tuple[str, ...]:
        """The names of the masks."""
        return tuple(node.mask for node in self.expression.walk() if isinstance(node, Sparse))

    def count(self, sizes: Sizes) -> int:
        """Return the number of trainable parameters for one matrix of these sizes."""
        total = 0
        for name in self.trainable:
            numbers = 1
            for size in sizes.of(self.shapes[name]):
                numbers *= size
            total += numbers
        return total
