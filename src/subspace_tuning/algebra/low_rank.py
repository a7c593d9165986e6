"""The low-rank terms of a formula, and the role of each factor in them.

Position decides, whatever the factors are called. A row multiplied by the factors of ``P @ diag(l) @ Q`` in turn has n
numbers, then r, r, and finally m: P leads *down* to the rank, Q leads back *up*, and diag(l) is the *core* between
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import names
from .nodes import Affine, Diag, Diagonal, Expression, Kron, Product
from .shapes import NodeShapes, Shape, Sizes

# Distinct numbers for the dimensions of a formula that may be adjacent in a product.
_RANK, _WINDOW, _CHANNELS, _COLUMNS, _ENTRIES, _DIRECTIONS = 5, 7, 1009, 2003, 11, 13


@dataclass(frozen=True)
class LowRank:
    """A part of a product whose first factor has r columns and whose last factor has r rows."""

    product: Product
    first: int
    last: int

    @property
    def factors(self) -> tuple[Expression, ...]:
        """All the factors, including the first and the last."""
        return self.product.factors[self.first : self.last + 1]

    @property
    def down(self) -> Expression:
        """The matrix that leads down to the rank: n x r, or c x r in a Kronecker product on a convolution's window."""
        return _matrix(self.factors[0])

    @property
    def core(self) -> tuple[Expression, ...]:
        """The factors between: r x r matrices, diagonals, nonlinearities."""
        return self.factors[1:-1]

    @property
    def up(self) -> Expression:
        """The matrix that leads up from the rank: r x m."""
        return _matrix(self.factors[-1])

    @property
    def is_free(self) -> bool:
        """Whether the factors that lead down and up are both trained."""
        return not any(map(names.is_frozen, (*self.down.names, *self.up.names)))

    @property
    def diagonal(self) -> str | None:
        """The vector of a core that is one trained diagonal, apart from nonlinearities; None for any other core."""
        matrices = [node for node in self.core if not node.is_shapeless]
        if len(matrices) != 1 or not isinstance(matrices[0], (Diagonal, Diag)):
            return None
        (*others, name) = matrices[0].names
        return None if others or names.is_frozen(name) else name


def low_rank_terms(expression: Expression, shapes: Mapping[str, Shape], axes: int) -> Iterator[LowRank]:
    """Yield the low-rank terms of a formula that hold a trained factor, in reading order.

    Args:
        expression: the formula.
        shapes: of its names.
        axes: the number of axes of a convolution's window with their own factors.
    """
    rows = _CHANNELS * _WINDOW**axes
    sizes = Sizes(rows, _COLUMNS, _RANK, _ENTRIES, _DIRECTIONS, (_WINDOW,) * axes)
    of, narrow = NodeShapes(shapes, sizes), (_RANK, _RANK ** (1 + axes))  # r, and g with the ranks of the axes
    for product in dict.fromkeys(node for node in expression.walk() if isinstance(node, Product)):
        first: int | None = None
        for index, factor in enumerate(product.factors):
            if factor.is_shapeless:
                continue
            before, after = (size in narrow for size in of(factor))
            if first is not None and not after:
                term = LowRank(product, first, index)
                if not all(names.is_frozen(name) for part in term.factors for name in part.names):
                    yield term
            if not after:
                first = None
            elif not before:
                first = index


def rank_axis(shape: Shape) -> int | None:
    """Return the axis of a factor's shape that is the rank, or None."""
    return next((axis for axis, dimension in enumerate(shape) if dimension in ("r", "g")), None)


def _matrix(factor: Expression) -> Expression:
    """Return the matrix of an affine factor, the channel factor of a Kronecker product, or the factor itself."""
    if isinstance(factor, Affine):
        return factor.matrix
    return factor.factors[0] if isinstance(factor, Kron) else factor
