"""Construction in normal form: flat products and sums, with numbers in front."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from ...errors import SubspaceError
from .. import names
from .base import Expression
from .composite import Product, Scale, Sum, Transpose
from .elementwise import NONLINEARITIES, Activation
from .hadamard import Hadamard
from .leaves import Diagonal, Identity, Leaf, Matrix, Normalisation, Number, Scalar, Vector
from .sparse import Sparse


def product(*parts: Expression) -> Expression:
    """Return ``A @ B @ ...``, flat, with scalars in front and without identities."""
    number, scalars, cores = _gathered(parts)
    if len(cores) < len(parts):  # a number; the parser refuses it, with its place
        return Product(tuple(factor for part in parts for factor in _factors(part)))
    factors = [factor for core in cores for factor in _factors(core) if not isinstance(factor, Identity)]
    whole = Identity() if not factors else factors[0] if len(factors) == 1 else Product(tuple(factors))
    return _scaled(number, scalars, whole)


def add(*parts: Expression) -> Expression:
    """Return ``A + B + ...``, flat; numbers are added up, and so are multiples of the identity."""
    terms = [term for part in parts for term in _terms(part)]
    terms = _merged(terms, lambda term: isinstance(term, Number), _total)
    terms = _merged(terms, _is_multiple_of_identity, _total_of_identities)
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def _total(numbers: Sequence[Expression]) -> Expression:
    return Number(reduce(operator.add, (number.value for number in numbers if isinstance(number, Number))))


def _is_multiple_of_identity(node: Expression) -> bool:
    return isinstance(node.node if isinstance(node, Scale) else node, Identity)


def _total_of_identities(nodes: Sequence[Expression]) -> Expression:
    coefficients = [_scaled(*_coefficients(node)[:2], None) for node in nodes]
    return times(add(*coefficients), Identity())


def times(*parts: Expression) -> Expression:
    """Return ``A * B * ...``: scalars times a node, mask times entries, or the element-wise product.

    Numbers are multiplied and come first, followed by scalars in order.
    """
    number, scalars, cores = _gathered(parts)
    return _scaled(number, scalars, _elementwise(cores) if cores else None)


def negative(node: Expression) -> Expression:
    """Return ``-node``; the sign joins the number in front."""
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


def _elementwise(nodes: Sequence[Expression]) -> Expression:
    factors = [factor for node in nodes for factor in (node.factors if isinstance(node, Hadamard) else (node,))]
    first, second = factors[0], factors[1] if len(factors) > 1 else None
    if _is_mask(first) and isinstance(second, Matrix) and not _is_mask(second):
        assert isinstance(first, Matrix)
        factors[:2] = [Sparse(first.name, second.name)]
    factors = _merged(factors, lambda factor: isinstance(factor, Identity), lambda found: found[0])  # I * I is I
    return factors[0] if len(factors) == 1 else Hadamard(tuple(factors))


def _is_mask(node: Expression) -> bool:
    return isinstance(node, Matrix) and names.is_mask(node.name)


def _merged(
    nodes: list[Expression],
    alike: Callable[[Expression], bool],
    merge: Callable[[list[Expression]], Expression],
) -> list[Expression]:
    """Return nodes with one merged into the first of the equal ones."""
    found = [node for node in nodes if alike(node)]
    if len(found) < 2:
        return nodes
    place = next(index for index, node in enumerate(nodes) if alike(node))
    return [*nodes[:place], merge(found), *(node for node in nodes[place:] if not alike(node))]


def _coefficients(node: Expression) -> tuple[float, tuple[Expression, ...], Expression | None]:
    """Return (c, (s, t, ...), X) for the node c * s * t * X; X is None if the node is a number itself."""
    if isinstance(node, Number):
        return node.value, (), None
    if not isinstance(node, Scale):
        return (1.0, (node,), None) if node.is_number else (1.0, (), node)
    first, number = node.scalars[0], 1.0
    scalars, core = node.scalars, node.node
    if isinstance(first, Number):
        number, scalars = first.value, scalars[1:]
    return (number, (*scalars, core), None) if core.is_number else (number, scalars, core)


def _gathered(nodes: Sequence[Expression]) -> tuple[float, list[Expression], list[Expression]]:
    """Return the number, the scalars and the matrices of a product of nodes of either kind."""
    number, scalars, cores = 1.0, list[Expression](), list[Expression]()
    for node in nodes:
        factor, own, core = _coefficients(node)
        number *= factor
        scalars += own
        cores += [] if core is None else [core]
    return number, scalars, cores


def _scaled(number: float, scalars: Sequence[Expression], core: Expression | None) -> Expression:
    """Return number * scalars * core in normal form."""
    if core is None:
        if not scalars:
            return Number(number)
        scalars, core = scalars[:-1], scalars[-1]
    front = (*scalars,) if number == 1.0 else (Number(number), *scalars)
    return Scale(front, core) if front else core


def _as_expression(value: object) -> Expression | None:
    """Return a node, converting a number to one; None for anything that is not part of a formula."""
    if isinstance(value, Expression):
        return value
    return Number(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def either(build: Callable[[Expression, Expression], Expression], node: Expression, other: object) -> Expression:
    """Return a node built from a node and a node or number; NotImplemented for anything else."""
    expression = _as_expression(other)
    return NotImplemented if expression is None else build(node, expression)


def substitute(node: Expression, replacements: Mapping[str, Expression]) -> Expression:
    """Return the expression with every leaf of a given name replaced."""
    if isinstance(node, Leaf):
        return replacements.get(node.name, node)
    return node.rebuilt(tuple(substitute(child, replacements) for child in node.children))


def symbol(name: str) -> Expression:
    """Return the leaf that a name denotes by convention (see :mod:`subspace_tuning.algebra.names`)."""
    if name == "I":
        return Identity()
    if name in NONLINEARITIES:
        return Activation(name)
    if name == "N":
        return Normalisation(name)
    if names.is_diagonal(name.removesuffix(names.OFFSET)):
        return Diagonal(name)
    # A lower-case name is a scalar unless diag() or affine() uses it as a vector.
    return Matrix(name) if name[0].isupper() or name == "rest" else Scalar(name)


def as_vectors(node: Expression) -> Expression:
    """Return the expression with its lower-case names read as vectors instead of scalars."""
    if isinstance(node, Scalar):
        return Vector(node.name)
    return node.rebuilt(tuple(as_vectors(child) for child in node.children))


def _factors(node: Expression) -> tuple[Expression, ...]:
    return node.factors if isinstance(node, Product) else (node,)


def _terms(node: Expression) -> tuple[Expression, ...]:
    if isinstance(node, Scale) and node.scalars == (Number(-1.0),) and isinstance(node.node, Sum):
        return tuple(-term for term in node.node.terms)
    return node.terms if isinstance(node, Sum) else (node,)
