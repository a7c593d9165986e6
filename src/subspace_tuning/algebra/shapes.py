"""Shapes: symbolic in a formula, numeric in a layer, and the dimensions that are unified during parsing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..errors import SubspaceError
from . import names

Shape = tuple[str, ...]
"""Names of dimensions (see :class:`Sizes`): () for a number, (length,) for a vector, (rows, columns) for a matrix."""


class Sizes(NamedTuple):
    """The dimensions of a formula in one layer, as numbers: W is n x m, the rank is r.

    A mask has p entries, and q of W's singular directions are chosen. A convolution's patch has c channels times its
    window of w1, w2, ... positions; on axis i of the window the rank is v_i = min(r, w_i), and g = r v1 v2 ...

    n and m also split into two factors as close to the square root as their divisors allow: n = n1 n2 with n1 <= n2,
    and m = m1 m2. For a patch the channels are split, and n2 includes the window.
    """

    n: int
    m: int
    r: int
    p: int = 0
    q: int = 0
    window: tuple[int, ...] = ()

    def dimension(self, name: str) -> int:
        """Return a dimension by its name."""
        if name in ("n", "m", "r", "p", "q"):
            return int(getattr(self, name))
        if name == "k":
            return min(self.n, self.m)
        if name in ("n1", "n2", "m1", "m2"):
            whole = self.n if name[0] == "n" else self.m
            smaller = split(whole // math.prod(self.window) if name[0] == "n" else whole)
            return smaller if name[1] == "1" else whole // smaller
        if len(self.window) < int(name[1:] or 1):
            raise SubspaceError(
                "kron needs the window of a convolution, one factor per axis; this matrix has "
                f"{len(self.window) or 'none'}"
            )
        axes = [min(self.r, width) for width in self.window]
        if name == "c":
            return self.n // math.prod(self.window)
        if name == "g":
            return self.r * math.prod(axes)
        return (self.window if name[0] == "w" else axes)[int(name[1:]) - 1]

    def of(self, shape: Shape) -> tuple[int, ...]:
        """Return a symbolic shape in numbers."""
        return tuple(self.dimension(name) for name in shape)


def split(size: int) -> int:
    """Return the largest divisor of a size that is at most its square root."""
    return next(divisor for divisor in range(math.isqrt(size), 0, -1) if size % divisor == 0)


class Sized(Protocol):
    """An object with a numeric shape, given those of the names: a node."""

    def shape(self, shapes: NodeShapes) -> tuple[int, int]: ...


class NodeShapes:
    """Rows and columns of a formula's nodes in one layer: ``shapes(node)``."""

    def __init__(self, shapes: Mapping[str, Shape], sizes: Sizes) -> None:
        self.shapes, self.sizes = shapes, sizes
        self._known: dict[str, tuple[int, int]] = {}

    def __call__(self, node: Sized) -> tuple[int, int]:
        return node.shape(self)

    def named(self, name: str) -> tuple[int, int]:
        """Return rows and columns by name: for a vector its length twice, for a number 1 and 1."""
        if name not in self._known:
            stem = name.removesuffix(names.OFFSET)
            shape = ("n", "m") if name == "W" else self.shapes.get(stem, names.SPECTRAL_SHAPES.get(stem, ()))
            size = self.sizes.of(shape)
            self._known[name] = (size[0], size[-1]) if size else (1, 1)
        return self._known[name]


class Dimension:
    """A dimension during parsing: known by name, or inferred from the neighbours (union-find)."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.parent: Dimension | None = None

    def root(self) -> Dimension:
        dimension = self
        while dimension.parent is not None:
            dimension.parent = dimension.parent.parent or dimension.parent  # path compression
            dimension = dimension.parent
        return dimension

    def unify(self, other: Dimension) -> bool:
        """Make both the same dimension; return False if they are known to differ."""
        a, b = self.root(), other.root()
        if a is b:
            return True
        if a.name and b.name:
            return a.name == b.name
        if a.name:
            a, b = b, a
        a.parent = b
        return True

    def __str__(self) -> str:
        return self.root().name or "?"
