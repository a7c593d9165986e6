"""A formula's matrix as a sum of products: W between diagonals, and chains with a narrow place.

Sums and column normalisations around W are expanded, with unit(X) as X times the inverse of its norms. One term must
then be W between diagonals, and the others chains, which are cut in two where they are narrowest. ``unit(W + s * A @ B)
@ D`` is (W + A @ (s * B)) @ d, with d = D over the column norms of W + s * A @ B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .nodes import Activation, Affine, Expression, Identity, Product, Scale, Sum, Vector, W, add, product, times

ShapeOf = Callable[[Expression], tuple[int, int]]


class Cut(NamedTuple):
    """A chain as ``scalars * low @ function @ high``, with fewer columns of ``low`` than it has rows and columns."""

    low: Expression
    function: str | None
    high: Expression
    scalars: tuple[Expression, ...]


class NarrowForm(NamedTuple):
    """``(left @ W + narrow chains) @ right``; ``right`` acts on W alone if not ``right_scales_low_rank``."""

    left: tuple[Expression, ...]
    right: tuple[Expression, ...]
    right_scales_low_rank: bool
    cuts: tuple[Cut, ...]


def narrow_form(matrix: Expression, shape: ShapeOf) -> NarrowForm | None:
    """Return a formula's matrix as W between diagonals plus narrow chains, or None if it does not have that form.

    Args:
        matrix: the formula without its bias.
        shape: gives rows and columns of a node in numbers.
    """
    terms = sum_of_products(opened(matrix))
    frozen = [term for term in terms if W in term and all(factor.diagonal or factor == W for factor in term)]
    added = [term for term in terms if term not in frozen]
    if len(frozen) != 1 or frozen[0].count(W) != 1:
        return None
    place = frozen[0].index(W)
    left, right = frozen[0][:place], frozen[0][place + 1 :]
    right_scales_low_rank = bool(right) and all(term[-len(right) :] == right for term in added)
    cuts = [_cut(term[: -len(right)] if right_scales_low_rank else term, shape) for term in added]
    found = tuple(cut for cut in cuts if cut is not None)
    return NarrowForm(left, right, right_scales_low_rank, found) if len(found) == len(cuts) else None


def opened(expression: Expression) -> Expression:
    """Return an equal expression with W as a term beside what its reflections add: W - A @ folded(A) @ W."""
    if isinstance(expression, Affine):
        return Affine(opened(expression.matrix), expression.bias)
    if isinstance(expression, Sum):
        return add(*map(opened, expression.terms))
    if not isinstance(expression, Product):
        return expression
    places = [index for index, factor in enumerate(expression.factors) if len(factor.opened) > 1]
    if len(places) != 1:  # several would give as many terms as they have subsets
        return expression
    (place,) = places
    before, after = expression.factors[:place], expression.factors[place + 1 :]
    return add(*(product(*before, term, *after) for term in expression.factors[place].opened))


def with_bias(expression: Expression) -> tuple[Expression, Expression]:
    """Return the matrix of a formula and the bias that is added: the one in the formula, or the layer's own."""
    if isinstance(expression, Affine):
        return expression.matrix, expression.bias
    return expression, Vector("b")


def sum_of_products(node: Expression) -> list[tuple[Expression, ...]]:
    """Return the expression as a sum of products, with no sum above W."""
    if isinstance(node, Sum):
        return [term for part in node.terms for term in sum_of_products(part)]
    if isinstance(node, Scale):
        return [(*node.scalars, *term) for term in sum_of_products(node.node)]
    if "W" not in node.names:
        return [tuple(_factors(node))]
    factors = node.factored
    if factors == (node,):
        return [factors]
    holder = next(index for index, factor in enumerate(factors) if "W" in factor.names)
    before, after = factors[:holder], factors[holder + 1 :]
    return [(*before, *term, *after) for term in sum_of_products(factors[holder])]


def _factors(node: Expression) -> list[Expression]:
    if isinstance(node, Scale):
        return [*node.scalars, *_factors(node.node)]
    return list(node.factors) if isinstance(node, Product) else [node]


def chained(factors: Sequence[Expression]) -> Expression | None:
    """Return the product of factors, which may include scalars; None if there are none."""
    scalars = [factor for factor in factors if factor.is_number]
    matrices = tuple(factor for factor in factors if not factor.is_number)
    if not matrices:
        return None
    return times(*reversed(scalars), matrices[0] if len(matrices) == 1 else Product(matrices))


def _cut(factors: Sequence[Expression], shape: ShapeOf) -> Cut | None:
    """Cut a chain at its nonlinearity, or at its narrowest place; None if neither is narrow."""
    chain = [factor for factor in factors if not factor.is_number and not isinstance(factor, Identity)]
    scalars = tuple(factor for factor in factors if factor.is_number)
    bends = [index for index, factor in enumerate(chain) if isinstance(factor, Activation)]
    if len(bends) > 1:
        return None
    function = None
    if bends:
        bend = chain[bends[0]]
        assert isinstance(bend, Activation)
        before, function, after = chain[: bends[0]], bend.function, chain[bends[0] + 1 :]
    else:
        width = [shape(factor)[1] for factor in chain]
        place = min(range(len(chain)), key=lambda index: width[index]) + 1
        before, after = chain[:place], chain[place:]
    low, high = chained(before), chained(after)
    if low is None or high is None or not (low.has_matrix and high.has_matrix):
        return None
    (n, k), m = shape(low), shape(high)[1]
    if low.diagonal or high.diagonal or k >= min(n, m):
        return None
    return Cut(low, function, high, scalars)
