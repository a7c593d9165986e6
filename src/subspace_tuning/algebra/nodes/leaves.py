"""Leaves: named tensors and functions, numbers, and the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import SubspaceError
from .. import names
from .. import rows as R
from ..latex import name_in_latex
from ..operators import TENSORS, Operator
from ..rows import Rows
from ..shapes import NodeShapes, Shape
from .base import Environment, Expression, NotLinearError
from .common import DiagonalNode, MatrixNode
from .compact import zero_dim
from .planning import Planner, Step
from .structure import IDENTITY, NONE, Structure


@dataclass(frozen=True, eq=False)
class Leaf(Expression):
    """A named tensor of the environment."""

    name: str

    linear_in = ()
    zero_when = ()
    identity_when = ()

    @property
    def own_names(self) -> tuple[str, ...]:
        return (self.name,)

    def compact(self, env: Environment) -> Tensor:
        value = env[self.name]
        if type(value) not in TENSORS:  # the common case, without a call
            if isinstance(value, Operator):
                return value.dequantise()
            if isinstance(value, (float, int)):
                return zero_dim(value)
        return value  # type: ignore[return-value]

    def __str__(self) -> str:
        return self.name

    def latex(self) -> str:
        return name_in_latex(self.name)

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return shapes.named(self.name)

    def step(self, planner: Planner) -> Step:
        return planner.by_matrix(self)[0], self

    def form_step(self, planner: Planner) -> Step:
        return 0.0, self


class Matrix(Leaf, MatrixNode):
    """A dense matrix: W, a trainable factor, or a part of W's singular value decomposition."""

    def apply(self, x: Rows, env: Environment) -> Rows:
        value = env[self.name]
        if type(value) not in TENSORS and isinstance(value, Operator):
            return value.multiply(R.as_tensor(x))
        return R.matmul(x, value)  # type: ignore[arg-type]

    def _structure(self) -> Structure:
        shape = (names.SPECTRAL_SHAPES | names.CHOSEN_SHAPES).get(self.name, ())
        return Structure.LOW_RANK if {"r", "q"} & set(shape) else NONE


class Diagonal(Leaf, DiagonalNode):
    """A diagonal matrix, stored as the vector of its diagonal."""

    def held_shape(self, name: str, shape: Shape) -> Shape:
        return shape[:1]


class Normalisation(Leaf):
    """N, the layer's frozen normalisation, which the environment holds as a function on rows."""

    linear_map = False
    is_shapeless = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        function = env[self.name]
        assert callable(function)
        result: Tensor = function(R.as_tensor(x))
        return result

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self.name} is a normalisation, which has no matrix")

    def step(self, planner: Planner) -> Step:
        return 0.0, self


class Vector(Leaf):
    """A vector, inside ``diag(...)`` or as the bias of ``affine(..., ...)``."""

    linear_map = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(
            f"the vector {self.name!r} is not a map; use diag({self.name}) or affine(..., {self.name})"
        )


class Scalar(Leaf):
    """A number with a name: the scale s, or a trainable scalar."""

    linear_map = True
    is_number = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the scalar {self.name!r} is not a map; multiply a matrix by it with *")


@dataclass(frozen=True, eq=False)
class Number(Expression):
    """A literal number in front of a term.

    Raises:
        SubspaceError: the number is infinite, or not a number.
    """

    value: float

    is_number = True
    linear_map = True
    linear_in = ()
    zero_when = ()
    identity_when = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise SubspaceError(f"the number {self.value} is not finite")
        super().__post_init__()

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the number {self} is not a map; multiply a matrix by it with *")

    def compact(self, env: Environment) -> Tensor:
        return zero_dim(self.value)

    def __str__(self) -> str:
        return repr(int(self.value)) if self.value.is_integer() and abs(self.value) < 1e15 else repr(self.value)

    def latex(self) -> str:
        return str(self)

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        return (1, 1)

    def step(self, planner: Planner) -> Step:
        raise NotLinearError(f"the number {self} is not a map; multiply a matrix by it with *")


@dataclass(frozen=True, eq=False)
class Identity(Expression):
    """The identity, of the size its neighbours need."""

    linear_map = True
    is_shapeless = True
    linear_in = ()
    zero_when = ()
    identity_when = ()

    def apply(self, x: Rows, env: Environment) -> Rows:
        return x

    def compact(self, env: Environment) -> Tensor:
        return zero_dim(1.0)  # broadcasts to any length, on any device, and in any precision

    def __str__(self) -> str:
        return "I"

    def latex(self) -> str:
        return "I"

    def shape(self, shapes: NodeShapes) -> tuple[int, int]:
        raise SubspaceError("the identity takes its size from its neighbours, and has none here")

    def step(self, planner: Planner) -> Step:
        return 0.0, self

    def _structure(self) -> Structure:
        return IDENTITY
