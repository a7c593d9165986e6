"""Redundant trained factors: those whose values another factor can absorb.

``W + s * A @ G @ B`` reaches no more than ``W + s * A @ B``: whatever G is, A may take the value A @ G. Each rule
replaces a part of the formula by a *free* factor in it: one that occurs once, so that it may take any value of its
shape. All statements are about the values of phi(W), not about how training reaches them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import names
from .formula import Formula
from .nodes import (
    Diag,
    Diagonal,
    Expression,
    Hadamard,
    Leaf,
    Matrix,
    Number,
    Product,
    Scalar,
    Scale,
    Sparse,
    Sum,
    Transpose,
    Vector,
    W,
    add,
    product,
    symbol,
    times,
)
from .parse import parse
from .refusal import FormulaError
from .shapes import NodeShapes, Sizes


class Reduction(NamedTuple):
    """A formula with fewer trained numbers and the same set of possible phi(W).

    ``formula`` equals the previous one when its free factor ``kept`` takes the ``value``, which is written in the
    previous factors; the factors in ``gone`` are no longer needed.
    """

    gone: tuple[str, ...]
    kept: Expression
    value: Expression
    formula: Formula


class _Rewritten(NamedTuple):
    node: Expression
    kept: Expression
    value: Expression


def reductions(formula: Formula, sizes: Sizes | None = None) -> tuple[Reduction, ...]:
    """Return the possible reductions of a formula, each applied to the result of the one before.

    Args:
        formula: the formula.
        sizes: the sizes of a layer, with which products through a rank that does not limit them are found, too.
    """
    found: list[Reduction] = []
    while (step := _step(formula, sizes)) is not None:
        found.append(step)
        formula = step.formula
    return tuple(found)


def free_factors(expression: Expression) -> Callable[[str], bool]:
    """Return whether a name is a trained factor that occurs once in an expression, and its frozen start not at all."""
    count = Counter(name for node in expression.walk() for name in node.own_names)
    return lambda name: not names.is_frozen(name) and count[name] == 1 and names.start_of(name) not in count


def scaled_factors(node: Expression) -> Iterator[Expression]:
    """Yield the factors that carry a node's scale: c times the node is the node with c times the factor."""
    if isinstance(node, (Leaf, Sparse)) or (isinstance(node, Diag) and isinstance(node.node, Vector)):
        yield node
        return
    for index in reversed(node.linear_in):
        if (index,) in node.zero_when:  # linear, and with nothing beside it
            yield from scaled_factors(node.children[index])


def is_constant(node: Expression) -> bool:
    """Return whether a node is a number other than 0 that is not trained."""
    return (isinstance(node, Number) and node.value != 0.0) or node == Scalar(names.SCALE)


def _step(formula: Formula, sizes: Sizes | None) -> Reduction | None:
    for rewritten in _Rules(formula, sizes).rewritten(formula.expression):
        try:
            after = parse(str(rewritten.node))
        except FormulaError:  # the rest does not use W, or is not a matrix of its size
            continue
        gone = tuple(name for name in formula.trainable if name not in after.shapes)
        same = all(formula.shapes.get(name, shape) == shape for name, shape in after.shapes.items())
        # A factor with a different inferred shape would be a different factor.
        if gone and same and set(rewritten.kept.names) <= set(after.shapes):
            return Reduction(gone, rewritten.kept, rewritten.value, after)
    return None


class _Rules:
    """The rules on one formula. Each yields the rewritten node, and the value of a factor in it."""

    def __init__(self, formula: Formula, sizes: Sizes | None) -> None:
        self.formula, self.sizes = formula, sizes
        self.is_free = free_factors(formula.expression)

    def rewritten(self, node: Expression) -> Iterator[_Rewritten]:
        """Yield the ways to rewrite a node, or one below it."""
        if isinstance(node, Product):
            yield from self.in_product(node.factors)
        elif isinstance(node, Sum):
            yield from self.in_sum(node.terms)
        elif isinstance(node, Scale):
            yield from self.in_scale(node)
        elif isinstance(node, Hadamard):
            yield from self.in_entries(node.children)
        for index, child in enumerate(node.children):
            for inner in self.rewritten(child):
                children = (*node.children[:index], inner.node, *node.children[index + 1 :])
                yield _Rewritten(node.rebuilt(children), inner.kept, inner.value)

    def in_entries(self, sides: tuple[Expression, ...]) -> Iterator[_Rewritten]:
        for able in (self.is_sparse, self.is_dense):  # the one with fewer numbers first
            for kept, other in itertools.permutations(sides, 2):
                if able(kept) and self.can_go(other):
                    yield _Rewritten(times(*(side for side in sides if side is not other)), kept, times(kept, other))

    def in_product(self, factors: tuple[Expression, ...]) -> Iterator[_Rewritten]:
        for place, kept in enumerate(factors):
            for other, value in self.beside(factors, place):
                if self.can_go(factors[other]):
                    rest = factors[:other] + factors[other + 1 :]
                    inner = kept.node if isinstance(kept, Transpose) else kept
                    yield _Rewritten(product(*rest), inner, value.T if isinstance(kept, Transpose) else value)
        if self.sizes is not None:
            yield from self.through_a_rank(factors, NodeShapes(self.formula.shapes, self.sizes))

    def beside(self, factors: tuple[Expression, ...], place: int) -> Iterator[tuple[int, Expression]]:
        """Yield the places of the factors that the one at a place can absorb, and its value then."""
        kept = factors[place]
        for other in (place + 1, place - 1):
            if not 0 <= other < len(factors):
                continue
            pair = (kept, factors[other]) if other > place else (factors[other], kept)
            dense = self.is_dense(kept.node if isinstance(kept, Transpose) else kept)
            if dense or (self.is_sparse(kept) and factors[other].diagonal):
                yield other, product(*pair)
        if self.is_diagonal(kept):  # diagonals commute
            for side in (range(place + 1, len(factors)), range(place - 1, -1, -1)):
                for other in itertools.takewhile(lambda index: factors[index].diagonal, side):
                    yield other, product(kept, factors[other])

    def through_a_rank(self, factors: tuple[Expression, ...], shape: NodeShapes) -> Iterator[_Rewritten]:
        """Yield a product of two dense factors as one factor, if the rank does not limit it."""
        for place in range(len(factors) - 1):
            left, right = factors[place : place + 2]
            if self.is_dense(left) and self.is_dense(right):
                (n, rank), m = shape(left), shape(right)[1]
                if rank >= min(n, m):
                    whole = symbol(self.unused())
                    rest = (*factors[:place], whole, *factors[place + 2 :])
                    yield _Rewritten(product(*rest), whole, product(left, right))

    def in_sum(self, terms: tuple[Expression, ...]) -> Iterator[_Rewritten]:
        for kept in terms:
            core = kept.node if isinstance(kept, Scale) and all(map(is_constant, kept.scalars)) else kept
            diagonal = self.is_diagonal(core)
            free = isinstance(core, (Vector, Scalar)) and self.is_free(core.name)
            if not (diagonal or free or self.is_dense(core)):
                continue
            for other in terms:
                if other != kept and self.can_go(other) and (other.diagonal or not diagonal):
                    rest = [term for term in terms if term != other]
                    yield _Rewritten(add(*rest), kept, add(kept, other))
                    # If it was the term that contains W, W stays there.
                    yield _Rewritten(add(W, *rest), kept, add(kept, other, -W))

    def in_scale(self, node: Scale) -> Iterator[_Rewritten]:
        for index, scalar in enumerate(node.scalars):
            if self.can_go(scalar):
                rest = times(*node.scalars[:index], *node.scalars[index + 1 :], node.node)
                for kept in scaled_factors(rest):
                    if kept.names and self.is_free(kept.names[-1]):  # a mask comes before its entries
                        yield _Rewritten(rest, kept, times(scalar, kept))

    def can_go(self, node: Expression) -> bool:
        """Return whether a node contains trained factors and has a value that another factor could take."""
        trains = any(not names.is_frozen(name) for name in node.names)
        return trains and node.has_matrix and not any(part.is_random for part in node.walk())

    def is_dense(self, node: Expression) -> bool:
        return isinstance(node, Matrix) and self.is_free(node.name)

    def is_sparse(self, node: Expression) -> bool:
        return isinstance(node, Sparse) and self.is_free(node.entries)

    def is_diagonal(self, node: Expression) -> bool:
        if isinstance(node, Diag):
            return isinstance(node.node, Vector) and self.is_free(node.node.name)
        return isinstance(node, Diagonal) and self.is_free(node.name)

    def unused(self) -> str:
        """Return a name for a new factor."""
        taken = self.formula.shapes
        names_in_turn = itertools.chain(["Delta"], (f"P{number}" for number in itertools.count(1)))
        return next(name for name in names_in_turn if name not in taken)
