"""The closed set of nodes that formulas are made of.

An expression is an immutable tree over *names*. It holds no tensor: the tensors come in as an environment
``{name: tensor}``, so one expression serves every layer. Read as a map on rows it takes x (T x n) to x @ phi (T x m).

Every node answers three questions, and the planner a fourth (what it costs):

* ``apply(x, env)``   the rows x times this node;
* ``compact(env)``    the node's matrix, a diagonal one as the vector of its diagonal;
* ``str(node)``       the formula, which :func:`subspace_tuning.algebra.parse` reads back as the same node.

``+ - * @ .T`` build nodes in normal form: products and sums are flat, and scalars stand in front of the product that
they multiply. A scalar therefore scales the *whole* product, also across a nonlinearity: ``s * A @ relu @ B`` is s
times (A @ relu @ B).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SubspaceError
from . import names
from . import rows as R
from .rows import Rows


class Mode(NamedTuple):
    """How a formula is evaluated, beside what its names stand for: gates are drawn in training, rows are dropped."""

    training: bool = False
    dropout: float = 0.0


Environment: TypeAlias = Mapping[str, "Tensor | float | Callable[[Tensor], Tensor] | Mode"]
MODE = "<mode>"
"""The key of the :class:`Mode` in an environment. No name of a formula can be equal to it."""
EVALUATION = Mode()

# All of them map 0 to 0, so an element-wise function keeps a diagonal matrix diagonal.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

_SUM, _PRODUCT, _UNARY, _ATOM = range(4)


class NotLinearError(SubspaceError):
    """The expression is not one matrix: it has a nonlinearity between its factors, or a bias."""


@dataclass(frozen=True)
class Expression(ABC):
    """A node of a formula. Build them with ``+ - * @ .T``, the functions of this module, or ``parse``."""

    precedence = _ATOM

    @abstractmethod
    def apply(self, x: Rows, env: Environment) -> Rows:
        """Return the rows x (T x rows) times this node: T x columns."""

    @abstractmethod
    def compact(self, env: Environment) -> Tensor:
        """Return the matrix (rows x columns); of a diagonal node the vector. Raises NotLinearError."""

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()

    @property
    def diagonal(self) -> bool:
        """Whether the structure alone says that the matrix is diagonal."""
        return False

    @property
    def is_number(self) -> bool:
        """Whether the structure alone says that this is a number and no matrix, such as ``s`` or ``1 - t``."""
        return False

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        """Return the same kind of node over other children, in normal form."""
        return type(self)(*children) if children else self

    def walk(self) -> Iterator[Expression]:
        """Yield this node and all below it, in reading order."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors and scalars used, in reading order, each once."""
        return tuple(dict.fromkeys(name for node in self.walk() for name in getattr(node, "own_names", ())))

    def __matmul__(self, other: Expression) -> Expression:
        return product(self, other) if isinstance(other, Expression) else NotImplemented

    def __add__(self, other: Expression | float) -> Expression:
        return _either(add, self, other)

    def __radd__(self, other: float) -> Expression:
        # sum() starts at 0, which fits every shape.
        return self if isinstance(other, int) and other == 0 else _either(lambda a, b: add(b, a), self, other)

    def __sub__(self, other: Expression | float) -> Expression:
        return _either(lambda a, b: add(a, -b), self, other)

    def __rsub__(self, other: float) -> Expression:
        return _either(lambda a, b: add(b, -a), self, other)

    def __neg__(self) -> Expression:
        number, scalars, core = _coefficients(self)
        return _scaled(-number, scalars, core)

    def __mul__(self, other: Expression | float) -> Expression:
        return _either(times, self, other)

    def __rmul__(self, other: float) -> Expression:
        return _either(lambda a, b: times(b, a), self, other)

    def __truediv__(self, other: float) -> Expression:
        number = _as_expression(other)
        if not isinstance(number, Number):
            return NotImplemented
        if number.value == 0.0:
            raise SubspaceError(f"{self} is divided by 0")
        return times(Number(1.0 / number.value), self)

    @property
    def T(self) -> Expression:
        if isinstance(self, Transpose):
            return self.node
        return self if isinstance(_coefficients(self)[2], Identity) else Transpose(self)

    def _inside(self, precedence: int) -> str:
        return str(self) if self.precedence > precedence else f"({self})"


# Leaves


@dataclass(frozen=True)
class Leaf(Expression):
    """A named tensor of the environment."""

    name: str

    @property
    def own_names(self) -> tuple[str, ...]:
        return (self.name,)

    def compact(self, env: Environment) -> Tensor:
        value = env[self.name]
        return value if isinstance(value, Tensor) else _zero_dim(value)

    def __str__(self) -> str:
        return self.name


class Matrix(Leaf):
    """A dense matrix: W, a trainable factor, or a part of W's singular value decomposition."""

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, self.compact(env))


class Diagonal(Leaf):
    """A diagonal matrix, held as the vector of its diagonal."""

    diagonal = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env))


class Normalisation(Leaf):
    """N, the frozen normalisation of the layer, which the environment holds as a function on rows."""

    def apply(self, x: Rows, env: Environment) -> Rows:
        function = env[self.name]
        assert callable(function)
        result: Tensor = function(R.as_tensor(x))
        return result

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self.name} is a normalisation, which no matrix stands for")


class Vector(Leaf):
    """A vector: it stands inside ``diag(...)`` or as the bias of ``affine(..., ...)``."""

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(
            f"the vector {self.name!r} is not a map; use diag({self.name}) or affine(..., {self.name})"
        )


class Scalar(Leaf):
    """A number with a name: the scale s, or a trainable scalar."""

    is_number = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the scalar {self.name!r} is not a map; multiply a matrix with it by *")


@dataclass(frozen=True)
class Number(Expression):
    """A literal number in front of a term.

    Raises:
        SubspaceError: the number is infinite, or not a number.
    """

    value: float
    is_number = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise SubspaceError(f"the number {self.value} is not finite")

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the number {self} is not a map; multiply a matrix with it by *")

    def compact(self, env: Environment) -> Tensor:
        return _zero_dim(self.value)

    def __str__(self) -> str:
        return repr(int(self.value)) if self.value.is_integer() and abs(self.value) < 1e15 else repr(self.value)


@dataclass(frozen=True)
class Identity(Expression):
    """The identity of whatever size its neighbours ask for."""

    diagonal = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return x

    def compact(self, env: Environment) -> Tensor:
        return torch.ones(())  # broadcasts to any length, on any device, and in any precision

    def __str__(self) -> str:
        return "I"


@dataclass(frozen=True)
class Activation(Expression):
    """An element-wise nonlinearity that stands between two factors; called, it acts on a matrix's entries."""

    function: str

    def __call__(self, node: Expression) -> Expression:
        return Elementwise(self.function, node)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return NONLINEARITIES[self.function](R.as_tensor(x))

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self.function} between the factors leaves no dense form")

    def __str__(self) -> str:
        return self.function


@dataclass(frozen=True)
class Sparse(Expression):
    """``M * Delta``: a matrix like W that is zero outside a mask.

    The environment holds the mask as the int64 flat indices of its k entries and Delta as their k values.
    """

    mask: str
    entries: str

    @property
    def own_names(self) -> tuple[str, ...]:
        return (self.mask, self.entries)

    precedence = _PRODUCT

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        weight, indices, values = env["W"], env[self.mask], env[self.entries]
        assert isinstance(weight, Tensor) and isinstance(indices, Tensor) and isinstance(values, Tensor)
        columns = weight.shape[1]
        rows = torch.div(indices, columns, rounding_mode="floor")
        return torch.zeros_like(weight, dtype=values.dtype).index_put((rows, indices % columns), values)

    def __str__(self) -> str:
        return f"{self.mask} * {self.entries}"


# Composites


@dataclass(frozen=True)
class Product(Expression):
    """Factors in the order in which the data flows."""

    factors: tuple[Expression, ...]
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.factors

    @property
    def diagonal(self) -> bool:
        return all(factor.diagonal for factor in self.factors)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return reduce(product, children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        for factor in self.factors:
            x = factor.apply(x, env)
        return x

    def compact(self, env: Environment) -> Tensor:
        result = self.factors[0].compact(env)
        for factor in self.factors[1:]:
            result = _multiplied(result, factor.compact(env), R.lies_transposed(env.get("W")))
        return result

    def __str__(self) -> str:
        return " @ ".join(factor._inside(_PRODUCT) for factor in self.factors)


@dataclass(frozen=True)
class Sum(Expression):
    """Terms of one shape: matrices, or vectors."""

    terms: tuple[Expression, ...]
    precedence = _SUM

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.terms

    @property
    def diagonal(self) -> bool:
        return all(term.diagonal for term in self.terms)

    @property
    def is_number(self) -> bool:
        return all(term.is_number for term in self.terms)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return reduce(add, children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        result = R.as_tensor(self.terms[0].apply(x, env))
        for term in self.terms[1:]:
            result = result + R.as_tensor(term.apply(x, env))
        return result

    def compact(self, env: Environment) -> Tensor:
        result = self.terms[0].compact(env)
        for term in self.terms[1:]:
            result = _added(result, term.compact(env))
        return result

    def __str__(self) -> str:
        text = str(self.terms[0])
        for term in self.terms[1:]:
            number = term.scalar if isinstance(term, Scale) else term
            if isinstance(number, Number) and number.value < 0:
                text += f" - {(-term)._inside(_SUM)}"
            else:
                text += f" + {term._inside(_SUM)}"
        return text


@dataclass(frozen=True)
class Scale(Expression):
    """A number times a node: ``s * A``, ``2 * A``, ``(1 - t) * A``."""

    scalar: Expression
    node: Expression
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.scalar, self.node)

    @property
    def diagonal(self) -> bool:
        return self.node.diagonal

    @property
    def is_number(self) -> bool:
        return self.node.is_number

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return times(*children)

    def value(self, env: Environment) -> Tensor | float:
        if isinstance(self.scalar, Number):
            return self.scalar.value
        value = env[self.scalar.name] if isinstance(self.scalar, Scalar) else self.scalar.compact(env)
        assert isinstance(value, (Tensor, float, int))
        return value

    def apply(self, x: Rows, env: Environment) -> Rows:
        y = R.as_tensor(self.node.apply(x, env))
        value = self.value(env)
        return y * (value.to(y.dtype) if isinstance(value, Tensor) else value)

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env) * self.value(env)

    def __str__(self) -> str:
        # A product needs no parentheses: the parser pulls the scalar in front of it again.
        inner = str(self.node) if isinstance(self.node, (Product, Scale)) else self.node._inside(_PRODUCT)
        if self.scalar != Number(-1.0):
            return f"{self.scalar._inside(_PRODUCT)} * {inner}"
        first = self.node
        while isinstance(first, (Product, Scale)):
            first = first.children[0]
        # The sign would go into a sum that stands first.
        return f"-({inner})" if isinstance(first, Sum) else f"-{inner}"


@dataclass(frozen=True)
class Hadamard(Expression):
    """The element-wise product of two matrices. Where one of them is diagonal, so is the product."""

    left: Expression
    right: Expression
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    @property
    def diagonal(self) -> bool:
        return self.left.diagonal or self.right.diagonal

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return times(*children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env)) if self.diagonal else R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        if self.diagonal:
            left, right = (
                side.compact(env) if side.diagonal else side.compact(env).diagonal() for side in self.children
            )
            return left * right
        return dense(self.left, env) * dense(self.right, env)

    def __str__(self) -> str:
        return f"{self.left._inside(_PRODUCT)} * {self.right._inside(_PRODUCT)}"


@dataclass(frozen=True)
class Transpose(Expression):
    """A transposed matrix."""

    node: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    @property
    def diagonal(self) -> bool:
        return self.node.diagonal

    def apply(self, x: Rows, env: Environment) -> Rows:
        return self.node.apply(x, env) if self.diagonal else R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        matrix = self.node.compact(env)
        return matrix if self.diagonal else matrix.T

    def __str__(self) -> str:
        return f"{self.node._inside(_UNARY)}.T"


@dataclass(frozen=True)
class Diag(Expression):
    """``diag(v)``: the diagonal matrix of a vector."""

    node: Expression
    diagonal = True

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        return self.node.compact(env)

    def __str__(self) -> str:
        return f"diag({self.node})"


@dataclass(frozen=True)
class Elementwise(Expression):
    """A nonlinearity of a matrix's entries. The map on rows stays linear."""

    function: str
    node: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Elementwise(self.function, *children)

    @property
    def diagonal(self) -> bool:
        return self.node.diagonal

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.scale(x, self.compact(env)) if self.diagonal else R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        return NONLINEARITIES[self.function](self.node.compact(env))

    def __str__(self) -> str:
        return f"{self.function}({self.node})"


@dataclass(frozen=True)
class Kron(Expression):
    """``kron(A, C1, C2)``: the Kronecker product, which acts on each axis of a convolution's patch by itself."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.factors

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return Kron(children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        return reduce(torch.kron, (dense(factor, env) for factor in self.factors))

    def __str__(self) -> str:
        return f"kron({', '.join(map(str, self.factors))})"


@dataclass(frozen=True)
class Affine(Expression):
    """``affine(A, b)``: the augmented matrix [A; b], the map x -> x @ A + b."""

    matrix: Expression
    bias: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.matrix, self.bias)

    def apply(self, x: Rows, env: Environment) -> Rows:
        y = R.as_tensor(self.matrix.apply(x, env))
        return y + self.bias.compact(env).to(y.dtype)

    def compact(self, env: Environment) -> Tensor:
        raise NotLinearError(f"{self} is a matrix and a bias, not one matrix")

    def __str__(self) -> str:
        return f"affine({self.matrix}, {self.bias})"


@dataclass(frozen=True)
class Carried(Expression):
    """Plan only: a vector as a row times a matrix, which is how a bias passes through what follows it."""

    vector: Expression
    matrix: Expression
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.vector, self.matrix)

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the vector {self} is not a map")

    def compact(self, env: Environment) -> Tensor:
        vector, matrix = self.vector.compact(env), self.matrix.compact(env)
        if matrix.dim() < 2:
            return vector * matrix
        dtype = torch.promote_types(vector.dtype, matrix.dtype)
        return vector.to(dtype) @ matrix.to(dtype)

    def __str__(self) -> str:
        return f"{self.vector._inside(_PRODUCT)} @ {self.matrix._inside(_SUM)}"


# Construction in normal form


def product(left: Expression, right: Expression) -> Expression:
    """Return ``left @ right``, flat, with scalars in front and without identities."""
    (number, scalars, first), (factor, others, last) = _coefficients(left), _coefficients(right)
    if first is None or last is None:  # refused where the formula is read, with its place
        return Product((*_factors(left), *_factors(right)))
    factors = tuple(part for part in (*_factors(first), *_factors(last)) if not isinstance(part, Identity))
    whole = Identity() if not factors else factors[0] if len(factors) == 1 else Product(factors)
    return _scaled(number * factor, (*scalars, *others), whole)


def add(left: Expression, right: Expression) -> Expression:
    """Return ``left + right``, flat; numbers and multiples of the identity are added up."""
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(left.value + right.value)
    (number, scalars, first), (factor, others, last) = _coefficients(left), _coefficients(right)
    if isinstance(first, Identity) and isinstance(last, Identity):
        return times(add(_scaled(number, scalars, None), _scaled(factor, others, None)), Identity())
    return Sum((*_terms(left), *_terms(right)))


def times(left: Expression, right: Expression) -> Expression:
    """Return ``left * right``: scalar times node, mask times entries, or the element-wise product.

    Numbers are multiplied out and stand first, then come scalars in their order.
    """
    (number, scalars, first), (factor, others, last) = _coefficients(left), _coefficients(right)
    core = last if first is None else first if last is None else _elementwise(first, last)
    return _scaled(number * factor, (*scalars, *others), core)


def _elementwise(left: Expression, right: Expression) -> Expression:
    if isinstance(left, Matrix) and isinstance(right, Matrix) and names.is_mask(left.name):
        return Sparse(left.name, right.name)
    return Hadamard(left, right)


def _coefficients(node: Expression) -> tuple[float, tuple[Expression, ...], Expression | None]:
    """Return (c, (s, t, ...), X) for the node c * s * t * X; X is None if the node is a number itself."""
    if isinstance(node, Number):
        return node.value, (), None
    if isinstance(node, Scale):
        number, scalars, core = _coefficients(node.node)
        if isinstance(node.scalar, Number):
            return node.scalar.value * number, scalars, core
        return number, (node.scalar, *scalars), core
    return (1.0, (node,), None) if node.is_number else (1.0, (), node)


def _scaled(number: float, scalars: tuple[Expression, ...], core: Expression | None) -> Expression:
    """Return number * scalars * core in normal form."""
    if core is None:
        if not scalars:
            return Number(number)
        scalars, core = scalars[:-1], scalars[-1]
    for scalar in reversed(scalars):
        core = Scale(scalar, core)
    if number == 1.0:
        return core
    if number == -1.0 and isinstance(core, Sum):
        return Sum(tuple(-term for term in core.terms))
    return Scale(Number(number), core)


def _as_expression(value: object) -> Expression | None:
    """Return a node, or a number as one; None for what stands in no formula."""
    if isinstance(value, Expression):
        return value
    return Number(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _either(build: Callable[[Expression, Expression], Expression], node: Expression, other: object) -> Expression:
    expression = _as_expression(other)
    return NotImplemented if expression is None else build(node, expression)


def diag(vector: Expression) -> Diag:
    """Return the diagonal matrix of a vector."""
    return Diag(_vectors(vector))


def affine(matrix: Expression, bias: Expression) -> Affine:
    """Return the augmented matrix [matrix; bias]."""
    return Affine(matrix, _vectors(bias))


relu, gelu, silu, tanh = (Activation(name) for name in NONLINEARITIES)


def substitute(node: Expression, replacements: Mapping[str, Expression]) -> Expression:
    """Return the expression with every leaf of a given name replaced."""
    if isinstance(node, Leaf):
        return replacements.get(node.name, node)
    return node.rebuilt(tuple(substitute(child, replacements) for child in node.children))


def symbol(name: str) -> Expression:
    """Return the leaf that a name stands for by convention (see :mod:`subspace_tuning.algebra.names`)."""
    if name == "I":
        return Identity()
    if name in NONLINEARITIES:
        return Activation(name)
    if name == "N":
        return Normalisation(name)
    if names.is_diagonal(name.removesuffix(names.OFFSET)):
        return Diagonal(name)
    # A lower-case name is a scalar until diag() or affine() finds it in the place of a vector.
    return Matrix(name) if name[0].isupper() or name == "rest" else Scalar(name)


def _vectors(node: Expression) -> Expression:
    if isinstance(node, Scalar):
        return Vector(node.name)
    if isinstance(node, Sum):
        return Sum(tuple(_vectors(term) for term in node.terms))
    if isinstance(node, Scale):
        inner = _vectors(node.node)
        return Scale(node.scalar, inner) if isinstance(node.scalar, Number) else Hadamard(_vectors(node.scalar), inner)
    return node


def _factors(node: Expression) -> tuple[Expression, ...]:
    return node.factors if isinstance(node, Product) else (node,)


def _terms(node: Expression) -> tuple[Expression, ...]:
    return node.terms if isinstance(node, Sum) else (node,)


# Tensors in compact form: two dimensions are a matrix, fewer a diagonal


def dense(node: Expression, env: Environment) -> Tensor:
    """Return the node's matrix, rows x columns. Raises NotLinearError where there is none."""
    matrix = node.compact(env)
    return torch.diag(matrix) if node.diagonal else matrix


def _zero_dim(value: object) -> Tensor:
    """Return a number as a tensor. Without dimensions it has the precision of what it meets, and loses none itself."""
    assert isinstance(value, (float, int))
    return torch.tensor(value, dtype=torch.float64)


def _multiplied(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """Multiply two matrices in compact form, in the wider of their precisions.

    The result lies in memory as W does, ``transposed`` or not: added to W in another layout it costs ten times as much.
    """
    if not (left.dim() and right.dim()):  # a multiple of the identity
        return left * right
    if left.dim() < 2:
        return left.unsqueeze(-1) * right if left.dim() < right.dim() == 2 else left * right
    if right.dim() < 2:
        return left * right
    dtype = torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(dtype), right.to(dtype)
    return (right.T @ left.T).T if transposed else left @ right


def _added(left: Tensor, right: Tensor) -> Tensor:
    """Add two matrices in compact form."""
    if (left.dim() < 2) == (right.dim() < 2):
        return left + right
    matrix, diagonal = (left, right) if left.dim() == 2 else (right, left)
    if not diagonal.dim():  # a multiple of the identity, in the precision of the matrix
        diagonal = diagonal.to(matrix.dtype).expand(len(matrix))
    return matrix + torch.diag(diagonal.to(matrix.device))
