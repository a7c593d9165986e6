"""The functions of the formula language: each node registers how a call of its function is parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..shapes import Dimension
from .base import Expression


@dataclass(frozen=True)
class Typed:
    """An expression with its shape: () a scalar, (length,) a vector, (rows, columns) a matrix."""

    node: Expression
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        if not self.shape:
            return "a number"
        shown = " x ".join(map(str, self.shape))
        return "a matrix" if shown == "? x ?" else shown


class Call(Protocol):
    """A call as its reader sees it. Anything that does not fit raises FormulaError, with its place."""

    @property
    def arguments(self) -> list[Typed]: ...

    def matrix(self, index: int) -> Typed:
        """Return an argument that must be a matrix."""
        ...

    def sized_matrix(self, index: int) -> Typed:
        """Return an argument that must be a matrix with its own size, unlike ``I``."""
        ...

    def vector(self, index: int, length: Dimension) -> Expression:
        """Return an argument that must be a vector of this length."""
        ...

    def unify(self, index: int, shape: tuple[Dimension, ...]) -> None:
        """Give an argument this shape."""
        ...

    def known(self, *dimensions: str) -> tuple[Dimension, ...]:
        """Return dimensions by their names (see :class:`subspace_tuning.algebra.Sizes`)."""
        ...


Reader: TypeAlias = Callable[[Call], Typed]


@dataclass(frozen=True)
class Function:
    """A function of the language: the reader of its calls, and how many arguments it takes."""

    read: Reader
    least: int
    most: int
    arguments: str  # in the words of a message


FUNCTIONS: dict[str, Function] = {}


def function(
    name: str, least: int = 1, most: int | None = None, arguments: str | None = None
) -> Callable[[Reader], Reader]:
    """Register how ``name(...)`` is read, with the number of its arguments."""
    most = least if most is None else most
    shown = arguments or f"{least} argument{'s' * (least > 1)}"

    def register(reader: Reader) -> Reader:
        FUNCTIONS[name] = Function(reader, least, most, shown)
        return reader

    return register
