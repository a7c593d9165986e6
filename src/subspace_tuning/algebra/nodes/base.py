"""Nodes: matrices, or maps on rows, with their own rules.

An expression is an immutable tree over *names*. It holds no tensors: they come in as an environment
``{name: tensor}``, so one expression serves every layer. As a map on rows it takes x (T x n) to x @ phi (T x m).

A node that lacks a rule cannot be instantiated: each rule is an abstract member of :class:`Expression`, or has a
default for every node. The rest of the library derives what it needs from them and names no special node:

* evaluation from ``apply`` and ``compact``, printing from ``str`` and ``latex``;
* the planner from ``shape``, ``step`` and ``form_step``;
* starts and checks from the facts ``linear_map``, ``linear_in``, ``zero_when``, ``identity_when``, ``structure``.

How a function of the language is parsed is defined beside its node (see :mod:`.language`).

``+ - * @ .T`` build nodes in normal form: products, element-wise products and sums are flat, so that a longer chain is
no deeper, and scalars come before the product that they multiply. A scalar therefore scales the *whole* product, even
across a nonlinearity: ``s * A @ relu @ B`` is s times (A @ relu @ B).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from ...errors import SubspaceError
from ..operators import Operator
from ..rows import Rows
from ..shapes import NodeShapes, Shape
from .planning import Planner, Step
from .structure import NONE, Structure

Environment: TypeAlias = Mapping[str, "Tensor | Operator | float | Callable[[Tensor], Tensor]"]

SUM, PRODUCT, UNARY, ATOM = range(4)  # how tightly an operation binds


class NotLinearError(SubspaceError):
    """The expression is not one matrix: it has a nonlinearity between its factors, or a bias."""


@dataclass(frozen=True, eq=False)
class Expression(ABC):
    """A node of a formula. Build them with ``+ - * @ .T``, the functions of this package, or ``parse``."""

    structure: Structure = field(init=False, repr=False)
    diagonal: bool = field(init=False, repr=False)
    depth: int = field(init=False, repr=False)
    """The depth of the tree below this node, itself included."""
    _written: tuple[object, ...] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    # Defaults for every node; a node that differs overrides them.
    precedence = ATOM
    forms_itself = False  # whether ``apply`` multiplies the rows by the formed matrix
    reads_norms = False  # whether ``apply`` computes the norms of the columns below
    rows_enter: ClassVar[int | None] = None  # the child that receives this node's rows, on which dropout may act
    scaled_child: ClassVar[int | None] = None  # the child that absorbs the numbers before the node, if that is cheaper
    holds_weight = True  # whether W within a child makes this node W reconstructed
    latex_in_brackets = False  # within a product
    acts_as_factor = True  # False: it acts on everything to its left, as a nonlinearity does
    is_random = False  # whether training samples the value in every pass (see ``drawn``)
    drawn_start: ClassVar[str | None] = None
    """The start of the factors below, if they may start anywhere; None: as for any factor."""
    identity_start: ClassVar[str | None] = None
    """The start of the factors below at which the node is the identity; None: by ``identity_when``."""

    def __post_init__(self) -> None:
        # Computed once, for the forward pass and the planner.
        written = tuple(self.__dict__.values())  # the constructor's arguments, before anything is cached
        object.__setattr__(self, "_written", written)
        object.__setattr__(self, "_hash", hash((type(self), written)))
        structure = self._structure()
        object.__setattr__(self, "structure", structure)
        object.__setattr__(self, "diagonal", Structure.DIAGONAL in structure)
        object.__setattr__(self, "depth", 1 + max((child.depth for child in self.children), default=0))

    # Nodes are equal if they print the same. They are immutable, so each is hashed once and never copied.

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other or type(self) is not type(other):
            return self is other
        assert isinstance(other, Expression)
        return self._hash == other._hash and self._written == other._written

    def __deepcopy__(self, memo: dict[int, object]) -> Expression:
        return self

    def __reduce__(self) -> tuple[type[Expression], tuple[object, ...]]:
        return type(self), self._written  # without the hash, which differs between processes

    # Evaluation

    @abstractmethod
    def apply(self, x: Rows, env: Environment) -> Rows:
        """Return the rows x (T x rows) times this node: T x columns."""

    @abstractmethod
    def compact(self, env: Environment) -> Tensor:
        """Return the matrix (rows x columns); of a diagonal node the vector. Raises NotLinearError."""

    # Printing

    @abstractmethod
    def __str__(self) -> str: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Expression.__repr__  # type: ignore[method-assign]  # a dataclass keeps what is there

    @abstractmethod
    def latex(self) -> str:
        """Return the node in LaTeX."""

    def inside(self, precedence: int) -> str:
        """Return the node as printed within an operation of this precedence."""
        return str(self) if self.precedence > precedence else f"({self})"

    def inside_latex(self) -> str:
        """Return the node in LaTeX, as a factor of a product."""
        return f"({self.latex()})" if self.latex_in_brackets else self.latex()

    # Shape and cost

    @abstractmethod
    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        """Return rows and columns in numbers."""

    @property
    def is_number(self) -> bool:
        """Whether the form alone shows that this is a number and not a matrix, as for ``s`` or ``1 - t``."""
        return False

    @cached_property
    def is_shapeless(self) -> bool:
        """Whether the node accepts rows of any width and keeps it, like ``I`` and ``relu``, or is a number."""
        if self.is_number or not self.children:
            return self.is_number
        return all(node.is_shapeless for node in self.walk() if not node.children)

    @abstractmethod
    def step(self, planner: Planner) -> Step:
        """Return the cost of ``apply``, with the best steps below this node. Not called for diagonals."""

    def form_step(self, planner: Planner) -> Step:
        """Return the cost of forming the matrix, with the best steps below. Not called for diagonals."""
        parts = [(0.0, child) if child.is_number else planner.form(child) for child in self.children]
        rows, columns = planner.shape(self)
        passes = planner.elements(rows * columns * self._passes, 1 + planner.trains(self)) if self._passes else 0.0
        return sum(part[0] for part in parts) + passes, self.rebuilt(tuple(part[1] for part in parts))

    @property
    def _passes(self) -> int:
        """How often forming the matrix from its parts writes all of its entries."""
        return 1

    # Facts

    def _structure(self) -> Structure:
        """Return the structure of the matrix that follows from the form; none by default."""
        return NONE

    @property
    @abstractmethod
    def linear_map(self) -> bool:
        """Whether this node itself is a linear map that treats all rows alike."""

    @property
    def needs_entries(self) -> bool:
        """Whether ``apply`` needs the entries of the matrices below, not only products with them."""
        return self.forms_itself

    @cached_property
    def has_matrix(self) -> bool:
        """Whether the node and all below it are linear maps on rows."""
        return all(node.linear_map for node in self.walk())

    @property
    @abstractmethod
    def linear_in(self) -> tuple[int, ...]:
        """The children in each of which the node is affine while the others are fixed."""

    @property
    @abstractmethod
    def zero_when(self) -> tuple[tuple[int, ...], ...]:
        """Sets of children: the node is zero if all children of one set are. () if it never is, and for leaves."""

    @property
    @abstractmethod
    def identity_when(self) -> tuple[int, ...]:
        """The children that are the identity when the node is; the others are zero then."""

    @property
    def factored(self) -> tuple[Expression, ...]:
        """The factors of a product equal to the node; the node alone if there is none."""
        return (self,)

    @property
    def opened(self) -> tuple[Expression, ...]:
        """The terms of a sum equal to the node, over which products are expanded; the node alone if there is none."""
        return (self,)

    @property
    def apart(self) -> Expression:
        """An equal node in which everything independent of the rows is a separate child; possibly the node itself."""
        return self

    # The tree

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names held by this node itself."""
        return ()

    def held_shape(self, name: str, shape: Shape) -> Shape:
        """Return the shape in which the tensor of one of its names is stored, given the shape of the matrix."""
        return shape

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        """Return the same kind of node over other children, in normal form."""
        return type(self)(*children) if children else self

    def over(self, children: tuple[Expression, ...]) -> Expression:
        """Return the same node over other children, unchanged: no scalar is pulled out of a product."""
        return self.rebuilt(children)

    def drawn(self) -> Expression:
        """Return the expression as evaluated in training, where random values are sampled in every pass."""
        return self.over(tuple(child.drawn() for child in self.children)) if self.children else self

    def walk(self) -> Iterator[Expression]:
        """Yield this node and all below it, in reading order."""
        ahead = [self]
        while ahead:
            node = ahead.pop()
            yield node
            ahead.extend(reversed(node.children))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors and scalars used, in reading order, without repetition."""
        return tuple(dict.fromkeys(name for node in self.walk() for name in node.own_names))

    # Operators

    def __matmul__(self, other: Expression) -> Expression:
        return build.product(self, other) if isinstance(other, Expression) else NotImplemented

    def __add__(self, other: Expression | float) -> Expression:
        return build.either(build.add, self, other)

    def __radd__(self, other: float) -> Expression:
        # sum() starts at 0, which fits every shape.
        if isinstance(other, int) and other == 0:
            return self
        return build.either(lambda a, b: build.add(b, a), self, other)

    def __sub__(self, other: Expression | float) -> Expression:
        return build.either(lambda a, b: build.add(a, -b), self, other)

    def __rsub__(self, other: float) -> Expression:
        return build.either(lambda a, b: build.add(b, -a), self, other)

    def __neg__(self) -> Expression:
        return build.negative(self)

    def __mul__(self, other: Expression | float) -> Expression:
        return build.either(build.times, self, other)

    def __rmul__(self, other: float) -> Expression:
        return build.either(lambda a, b: build.times(b, a), self, other)

    def __truediv__(self, other: float) -> Expression:
        return build.divided(self, other)

    @property
    def T(self) -> Expression:
        return build.transposed(self)


def dense(node: Expression, env: Environment) -> Tensor:
    """Return the node's matrix, rows x columns. Raises NotLinearError if there is none."""
    return torch.diag(node.compact(env)) if node.diagonal else node.compact(env)


from . import build  # noqa: E402 (the operators above build nodes from the classes above)
