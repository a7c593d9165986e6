"""Finds the parts of a formula that can be solved for.

Each node has one rule (``_within``), which gives the places of its children. A node is only entered through children in
which it is linear, and a node without a rule raises. A formula of one block is solved at once; several blocks are
solved in turn; a formula not made of blocks is left to the general solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from ..algebra.nodes import (
    Diagonal,
    Expression,
    Hadamard,
    Matrix,
    Product,
    Scale,
    Sparse,
    Structure,
    Sum,
    Transpose,
    times,
)
from .blocks import Block, Chain, Diagonals, Directions, Entries, Multiple, Place, Weighted, WeightedProduct
from .elements import is_free, is_positive, trainable

BY_NORM = "_by_norm"
"""The suffix of a diagonal D after ``unit(X)`` that means D over the column norms of X."""


class NoRuleError(Exception):
    """Raised if a formula is not made of blocks; says why."""


def find_blocks(expression: Expression) -> list[Block]:
    """Return the blocks of a formula's matrix; none if it has no trainable factors.

    Raises:
        NoRuleError: a trainable factor is in no place that can be solved for.
    """
    found = _blocks(expression, Place())
    places = [name for node in expression.walk() for name in node.own_names]
    twice = next((name for name in trainable(expression) if places.count(name) > 1), None)
    if twice is not None:
        raise NoRuleError(f"{twice} occurs in several places")
    return found


# unit(X) @ D


def without_unit(node: Expression) -> Expression:
    """Write unit(X) @ D as X @ D_by_norm if D is a free diagonal: both reach the same matrices."""
    node = node.rebuilt(tuple(without_unit(child) for child in node.children)) if node.children else node
    if not isinstance(node, Product):
        return node
    factors: list[Expression] = []
    for factor in node.factors:
        if factors and _takes_norms(factors[-1], factor):
            assert isinstance(factor, Diagonal)
            factors[-1:] = [factors[-1].factored[0], Diagonal(f"{factor.name}{BY_NORM}")]
        else:
            factors.append(factor)
    return Product(tuple(factors))


def norms_taken(expression: Expression) -> dict[str, Expression]:
    """Return, for each diagonal that ``without_unit`` replaces, the matrix by whose column norms it is divided."""
    return {
        factor.names[0]: before.factored[0]
        for node in expression.walk()
        if isinstance(node, Product)
        for before, factor in zip(node.factors, node.factors[1:], strict=False)
        if _takes_norms(before, factor)
    }


def _takes_norms(before: Expression, factor: Expression) -> bool:
    normalised = Structure.NORMALISED_COLUMNS in before.structure
    return normalised and isinstance(factor, Diagonal) and is_free(factor)


# The rules of the nodes


def _blocks(node: Expression, place: Place) -> list[Block]:
    """Return the blocks of a node at a place. Raises NoRuleError."""
    if not trainable(node):
        return []
    if is_free(node) or is_positive(node):
        return _chain((node,), place)
    for index, child in enumerate(node.children):
        if index not in node.linear_in and trainable(child):
            raise NoRuleError(f"{node} is not linear in {child}")
    return _within(node, place)


@singledispatch
def _within(node: Expression, place: Place) -> list[Block]:
    """Return the blocks inside a node that is not free as a whole. Raises NoRuleError."""
    raise NoRuleError(f"there is no rule for {node}")


@_within.register
def _in_sum(node: Sum, place: Place) -> list[Block]:
    return [block for term in node.terms for block in _blocks(term, place)]


@_within.register
def _in_product(node: Product, place: Place) -> list[Block]:
    return _chain(node.factors, place)


@_within.register
def _in_transpose(node: Transpose, place: Place) -> list[Block]:
    return _blocks(node.node, place.turned())


@_within.register
def _in_scale(node: Scale, place: Place) -> list[Block]:
    moving = [index for index, scalar in enumerate(node.scalars) if trainable(scalar)]
    if trainable(node.node):
        if moving and not _can_vanish(node.node):
            raise NoRuleError(f"{node.scalars[moving[0]]} multiplies more than the blocks of {node.node}")
        # Trained numbers add nothing to what the blocks reach, so they stay fixed.
        return _blocks(node.node, place.scaled(*node.scalars))
    last = moving[-1]  # for the same reason one of them is enough
    scalar, fixed = node.scalars[last], times(*node.scalars[last + 1 :], node.node)
    if not is_free(scalar) or place.weight is not None:
        raise NoRuleError(f"there is no rule for the number {scalar} in {node}")
    return [Multiple((scalar,), place.scaled(*node.scalars[:last]).between((), (fixed,)))]


@_within.register
def _in_hadamard(node: Hadamard, place: Place) -> list[Block]:
    # With open gates, the gated matrix reaches everything it could.
    moving = [child for child in node.children if trainable(child) and not child.is_random]
    if len(moving) != 1 or not place.alone or place.weight is not None:
        raise NoRuleError(f"there is no rule for {node} beside other factors")
    weight = times(*(child for child in node.children if child is not moving[0]))
    return _blocks(moving[0], Place(scalars=place.scalars, weight=weight, flipped=place.flipped))


@_within.register
def _in_sparse(node: Sparse, place: Place) -> list[Block]:
    if not place.alone or place.weight is not None or place.flipped:
        raise NoRuleError(f"there is no rule for {node} within a product")
    return [Entries((node,), place)]


def _can_vanish(node: Expression) -> bool:
    """Return whether a block makes the node zero."""
    if is_free(node) or is_positive(node) or any(name in trainable(node) for name in node.own_names):
        return True
    return any(all(_can_vanish(node.children[index]) for index in way) for way in node.zero_when)


# Products


def _chain(factors: Sequence[Expression], place: Place) -> list[Block]:
    """Return the blocks of a product at a place: runs of free factors, and the blocks inside other factors."""
    found: list[Block] = []
    index = 0
    while index < len(factors):
        end, kind = _run(factors, index)
        inner = place.between(factors[:index], factors[end:])
        if kind is None:
            found += _blocks(factors[index], inner)
        else:
            run = tuple(factors[index:end])
            found.append((kind if place.weight is None else _weighted(run, inner))(run, inner))
            if kind is Directions and (inner.right or inner.flipped):
                raise NoRuleError(f"there is no rule for {Product(run)} within {Product(tuple(factors))}")
        index = end
    return found


def _weighted(run: tuple[Expression, ...], place: Place) -> type[Block]:
    """Return the type of block for a run under an element-wise weight."""
    if not place.alone or len(run) > 2 or any(node.diagonal for node in run):
        raise NoRuleError(f"there is no rule for {Product(run)} beside {place.weight}")
    return Weighted if len(run) == 1 else WeightedProduct


def _run(factors: Sequence[Expression], start: int) -> tuple[int, type[Block] | None]:
    """Return the end of the run of free factors that starts here, and its type of block; None if there is none."""
    if _are_directions(factors[start : start + 3]):
        return start + 3, Directions
    if is_positive(factors[start]):
        return start + 1, Diagonals
    if not is_free(factors[start]):
        return start + 1, None
    end = start + 1
    for index in range(start + 1, len(factors)):
        if is_free(factors[index]) and not _are_directions(factors[index : index + 3]):
            end = index + 1
        elif trainable(factors[index]) or not factors[index].diagonal or factors[index].is_shapeless:
            break
    return end, Diagonals if all(factor.diagonal for factor in factors[start:end]) else Chain


def _are_directions(factors: Sequence[Expression]) -> bool:
    if len(factors) != 3:
        return False
    left, middle, right = factors
    return left == Matrix("U_k") and right == Matrix("V_k").T and middle.diagonal and is_free(middle)
