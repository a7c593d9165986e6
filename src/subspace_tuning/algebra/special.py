"""Special cases of formulas: factors set to zero or one, and the resulting forms compared.

The search is sound but not complete: a form that is found is the formula at the given values, up to the names of
factors, the order of terms and constants that a free factor absorbs; there may be others.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from . import names
from .formula import Formula
from .nodes import (
    Activation,
    Affine,
    Diag,
    Diagonal,
    Expression,
    Hadamard,
    Identity,
    Leaf,
    Matrix,
    Number,
    Product,
    Scalar,
    Scale,
    Sparse,
    Sum,
    Vector,
    add,
    substitute,
    times,
)
from .reduce import free_factors, is_constant, scaled_factors
from .shapes import Shape

Form: TypeAlias = "tuple[Expression, tuple[Shape, ...]]"
"""A formula up to its names: the expression with its factors numbered, and their shapes."""

_MOST_WORK = 100_000  # normalising a form takes about quadratic time in its nodes


@lru_cache(maxsize=1024)
def form_of(formula: Formula) -> Form:
    """Return a formula up to the names of its factors; formulas of one form are the same set of maps."""
    whole = formula.collected
    if isinstance(whole, Affine) and whole.bias == Vector("b"):
        whole = whole.matrix
    shapes = {name: formula.shapes[name] for name in whole.names if not names.is_frozen(name)}
    node = _without_constants(_with_diagonals(whole))
    kinds = {name: f"{'x'.join(shape)}?" for name, shape in shapes.items()}
    node = _sorted(node, kinds)
    factors = [name for name in node.names if name in shapes]
    numbered = {name: f"F{number}" for number, name in enumerate(factors)}
    numbered |= {names.start_of(name): names.start_of(new) for name, new in numbered.items()}
    return _renamed(node, numbered), tuple(shapes[name] for name in factors)


@lru_cache(maxsize=256)
def special_cases(formula: Formula) -> Mapping[Form, Mapping[str, str]]:
    """Return the forms of a formula with some factors at fixed values, each with those values.

    A value is "0"; "1" for a number; "I" for a diagonal or a square matrix; or a diagonal's name for a square matrix.
    The search ends after a few hundred forms, or fewer for a long formula.
    """
    found: dict[Form, Mapping[str, str]] = {form_of(formula): MappingProxyType({})}
    waiting = deque([(formula, found[form_of(formula)])])
    seen, work = {formula.expression}, 0
    while waiting:
        current, values = waiting.popleft()
        for name, value, special in _specialised(current):
            if special.expression in seen:  # the same factors in another order
                continue
            seen.add(special.expression)
            work += len(list(special.expression.walk())) ** 2
            if work > _MOST_WORK:
                return MappingProxyType(found)
            form = form_of(special)
            if form not in found:
                found[form] = MappingProxyType({**values, name: value})
                waiting.append((special, found[form]))
    return MappingProxyType(found)


def is_any_matrix(formula: Formula) -> bool:
    """Return whether phi(W) can be every n x m matrix, since a free factor of that shape is added."""
    terms = formula.matrix.terms if isinstance(formula.matrix, Sum) else (formula.matrix,)
    is_free = free_factors(formula.expression)
    for term in terms:
        if isinstance(term, Scale) and all(map(is_constant, term.scalars)):
            term = term.node
        if isinstance(term, Matrix) and is_free(term.name) and formula.shapes[term.name] == ("n", "m"):
            return formula.is_linear and formula.bias is None
    return False


def corresponding(one: Expression, other: Expression) -> Mapping[str, str] | None:
    """Match the names of two expressions that are equal up to names; None if they are not.

    ``diag(v)`` of a trained vector is the same as a diagonal factor.
    """
    one, other = _with_diagonals(one), _with_diagonals(other)
    renaming = dict(zip(one.names, other.names, strict=False))

    def means(name: str) -> str | None:
        """Return the new name of a name: a frozen tensor keeps its own, and a start follows its factor."""
        started = names.started(name)
        if started is not None:
            return names.start_of(renaming.get(started, started))
        return name if names.is_frozen(name) and not names.is_mask(name) else None

    alike = all(means(name) in (None, new) for name, new in renaming.items())
    return renaming if alike and _renamed(one, renaming) == other else None


# One factor at a fixed value


class _UnknownError(Exception):
    """Raised if the form does not determine a node with a factor at zero."""


def _specialised(formula: Formula) -> Iterator[tuple[str, str, Formula]]:
    """Yield the formula with one factor at a fixed value: the factor, the value, the result."""
    for name in reversed(formula.trainable):  # B = 0 rather than A = 0, as most methods start
        shapes = dict(formula.shapes)
        try:
            left = _without(formula.expression, name)
        except _UnknownError:
            left = None
        if left is not None and left.names:
            yield name, "0", Formula(left, shapes)
        shape = shapes[name]
        leaf = next(node for node in formula.expression.walk() if name in node.own_names)
        square = isinstance(leaf, Matrix) and len(set(shape)) == 1
        if isinstance(leaf, Diagonal) or square:
            yield name, "I", Formula(substitute(formula.expression, {name: Identity()}), shapes)
        elif isinstance(leaf, Scalar):
            yield name, "1", Formula(substitute(formula.expression, {name: Number(1.0)}), shapes)
        if square:
            diagonal = substitute(formula.expression, {name: Diagonal(name)})
            yield name, "a diagonal", Formula(diagonal, {**shapes, name: shape[:1]})


def _without(node: Expression, name: str) -> Expression | None:
    """Return a node with a factor at zero, or None if the node is then zero."""
    if name not in node.names:
        return node
    if isinstance(node, (Leaf, Sparse)):
        return None
    children = tuple(_without(child, name) for child in node.children)
    left = [child for child in children if child is not None]
    if isinstance(node, Sum):
        return add(*left) if left else None
    if isinstance(node, Affine) and children[0] is not None and children[1] is None:
        return children[0]
    if isinstance(node, Product) and len(left) < len(children):
        # A later bias or normalisation maps zero rows to nonzero ones.
        behind = node.factors[children.index(None) + 1 :]
        if all(factor.has_matrix or isinstance(factor, Activation) for factor in behind):
            return None
        raise _UnknownError
    if any(all(children[index] is None for index in way) for way in node.zero_when):
        return None
    if len(left) < len(children):
        raise _UnknownError
    return node.rebuilt(tuple(left))


# Forms


def _with_diagonals(node: Expression) -> Expression:
    """Write ``diag(v)`` of a trained vector as a diagonal factor."""
    if isinstance(node, Diag) and isinstance(node.node, Vector) and not names.is_frozen(node.node.name):
        return Diagonal(node.node.name)
    return node.rebuilt(tuple(map(_with_diagonals, node.children)))


def _without_constants(node: Expression) -> Expression:
    """Drop constant numbers that a free factor can absorb: they do not change the set of matrices."""
    is_free = free_factors(node)

    def cleared(part: Expression) -> Expression:
        if isinstance(part, Scale) and any(map(is_constant, part.scalars)):
            rest = times(*(scalar for scalar in part.scalars if not is_constant(scalar)), part.node)
            if any(map(carries, scaled_factors(rest))):
                return cleared(rest)
        return part.rebuilt(tuple(map(cleared, part.children)))

    def carries(factor: Expression) -> bool:
        return bool(factor.names) and is_free(factor.names[-1])  # a mask comes before its entries

    return cleared(node)


def _sorted(node: Expression, kinds: Mapping[str, str]) -> Expression:
    """Sort terms, and the sides of element-wise products, independently of the factors' names."""
    children = tuple(_sorted(child, kinds) for child in node.children)
    if isinstance(node, (Sum, Hadamard)):
        children = tuple(sorted(children, key=lambda child: str(_renamed(child, kinds))))
    return node.rebuilt(children)


def _renamed(node: Expression, renaming: Mapping[str, str]) -> Expression:
    if isinstance(node, Leaf):
        return dataclasses.replace(node, name=renaming.get(node.name, node.name))
    if isinstance(node, Sparse):
        return Sparse(renaming.get(node.mask, node.mask), renaming.get(node.entries, node.entries))
    return node.rebuilt(tuple(_renamed(child, renaming) for child in node.children))
