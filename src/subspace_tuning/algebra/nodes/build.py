"""Construction in normal form: flat products and sums, with numbers in front."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...errors import SubspaceError
from .. import names
from .base import Expression
from .composite import Product, Scale, Sum, Transpose
from .elementwise import NONLINEARITIES, Activation
from .hadamard import Hadamard
from .leaves import Diagonal, Identity, Leaf, Matrix, Normalisation, Number, Scalar, Vector
from .sparse import Sparse


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


def negative(node: Expression) -> Expression:
    """Return ``-node``; the sign joins the number in front, or goes into a sum."""
    number, scalars, core = _coefficients(node)
    return _scaled(-number, scalars, core)


def divided(node: Expression, by: object) -> Expression:
    """Return ``node / by`` for a number other than 0."""
    number = _as_expression(by)
    if not isinstance(number, Number):
        return NotImplemented  # type: ignore[no-any-return]
    if number.value == 0.0:
        raise SubspaceError(f"{node} is divided by 0")
    return times(Number(1.0 / number.value), node)


def transposed(node: Expression) -> Expression:
    """Return ``node.T``."""
    if isinstance(node, Transpose):
        return node.node
    return node if isinstance(_coefficients(node)[2], Identity) else Transpose(node)


def _elementwise(left: Expression, right: Expression) -> Expression:
    if isinstance(left, Matrix) and isinstance(right, Matrix) and names.is_mask(left.name):
        return Sparse(left.name, right.name)
    if isinstance(left, Identity) and isinstance(right, Identity):
        return left
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


def either(build: Callable[[Expression, Expression], Expression], node: Expression, other: object) -> Expression:
    """Return a node built from another and from a node or a number; NotImplemented for anything else."""
    expression = _as_expression(other)
    return NotImplemented if expression is None else build(node, expression)


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


def as_vectors(node: Expression) -> Expression:
    """Return the expression with its lower-case names, which are scalars elsewhere, as vectors."""
    if isinstance(node, Scalar):
        return Vector(node.name)
    if isinstance(node, Sum):
        return Sum(tuple(as_vectors(term) for term in node.terms))
    if isinstance(node, Scale):
        inner = as_vectors(node.node)
        return (
            Scale(node.scalar, inner) if isinstance(node.scalar, Number) else Hadamard(as_vectors(node.scalar), inner)
        )
    return node


def _factors(node: Expression) -> tuple[Expression, ...]:
    return node.factors if isinstance(node, Product) else (node,)


def _terms(node: Expression) -> tuple[Expression, ...]:
    return node.terms if isinstance(node, Sum) else (node,)
