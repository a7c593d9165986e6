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
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from . import names
from . import rows as R
from .rows import Rows

Environment: TypeAlias = Mapping[str, "Tensor | float | Callable[[Tensor], Tensor]"]

# All of them map 0 to 0, so an element-wise function keeps a diagonal matrix diagonal.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

_SUM, _PRODUCT, _UNARY, _ATOM = range(4)


class NotLinearError(TypeError):
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
        return product(self, other)

    def __add__(self, other: Expression) -> Expression:
        return add(self, other)

    def __sub__(self, other: Expression) -> Expression:
        return self + (-other)

    def __neg__(self) -> Expression:
        if isinstance(self, Number):
            return Number(-self.value)
        if isinstance(self, Sum):
            return Sum(tuple(-term for term in self.terms))
        if isinstance(self, Scale) and self.scalar == Number(-1.0):
            return self.node
        return Scale(Number(-1.0), self)

    def __mul__(self, other: Expression | float) -> Expression:
        return times(self, other if isinstance(other, Expression) else Number(float(other)))

    def __rmul__(self, other: float) -> Expression:
        return times(Number(float(other)), self)

    @property
    def T(self) -> Expression:
        return self.node if isinstance(self, Transpose) else Transpose(self)

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
        return value if isinstance(value, Tensor) else torch.tensor(value)

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

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the scalar {self.name!r} is not a map; multiply a matrix with it by *")


@dataclass(frozen=True)
class Number(Expression):
    """A literal number in front of a term."""

    value: float

    def apply(self, x: Rows, env: Environment) -> Rows:
        raise NotLinearError(f"the number {self} is not a map; multiply a matrix with it by *")

    def compact(self, env: Environment) -> Tensor:
        return torch.tensor(self.value)

    def __str__(self) -> str:
        return repr(int(self.value)) if self.value.is_integer() and math.isfinite(self.value) else repr(self.value)


@dataclass(frozen=True)
class Identity(Expression):
    """The identity of whatever size its neighbours ask for."""

    diagonal = True

    def apply(self, x: Rows, env: Environment) -> Rows:
        return x

    def compact(self, env: Environment) -> Tensor:
        return torch.ones(())  # broadcasts to any length, on any device

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
            if isinstance(term, Scale) and term.scalar == Number(-1.0):
                text += f" - {term.node._inside(_SUM)}"
            else:
                text += f" + {term._inside(_SUM)}"
        return text


@dataclass(frozen=True)
class Scale(Expression):
    """A scalar times a node."""

    scalar: Scalar | Number
    node: Expression
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.scalar, self.node)

    @property
    def diagonal(self) -> bool:
        return self.node.diagonal

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return times(*children)

    def value(self, env: Environment) -> Tensor | float:
        if isinstance(self.scalar, Number):
            return self.scalar.value
        value = env[self.scalar.name]
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
        return f"-{inner}" if self.scalar == Number(-1.0) else f"{self.scalar} * {inner}"


@dataclass(frozen=True)
class Hadamard(Expression):
    """The element-wise product of two matrices."""

    left: Expression
    right: Expression
    precedence = _PRODUCT

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    @property
    def diagonal(self) -> bool:
        return self.left.diagonal and self.right.diagonal

    def rebuilt(self, children: tuple[Expression, ...]) -> Expression:
        return times(*children)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, dense(self, env))

    def compact(self, env: Environment) -> Tensor:
        if self.diagonal:
            return self.left.compact(env) * self.right.compact(env)
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


# Construction in normal form


def product(left: Expression, right: Expression) -> Expression:
    """Return ``left @ right``, flat, with scalars in front."""
    if isinstance(left, Scale):
        return times(left.scalar, product(left.node, right))
    if isinstance(right, Scale):
        return times(right.scalar, product(left, right.node))
    return Product((*_factors(left), *_factors(right)))


def add(left: Expression, right: Expression) -> Expression:
    """Return ``left + right``, flat."""
    return Sum((*_terms(left), *_terms(right)))


def times(left: Expression, right: Expression) -> Expression:
    """Return ``left * right``: scalar times node, mask times entries, or the element-wise product."""
    if left == Number(-1.0):
        return -right
    if isinstance(left, (Scalar, Number)):
        return Scale(left, right)
    if isinstance(left, Scale):
        return times(left.scalar, times(left.node, right))
    if isinstance(right, (Scalar, Number)):
        return Scale(right, left)
    if isinstance(right, Scale):
        return times(right.scalar, times(left, right.node))
    if isinstance(left, Matrix) and isinstance(right, Matrix) and names.is_mask(left.name):
        return Sparse(left.name, right.name)
    return Hadamard(left, right)


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
        return Scale(node.scalar, _vectors(node.node))
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


def _multiplied(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """Multiply two matrices in compact form, in the wider of their precisions.

    The result lies in memory as W does, ``transposed`` or not: added to W in another layout it costs ten times as much.
    """
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
    return matrix + torch.diag(diagonal.expand(len(matrix)).to(matrix.device))
