"""Reading off a formula which of its parts can be solved for, each with the others fixed.

With everything else fixed, phi(W) = constant + weight * (left @ X @ right) in a *block* X: a diagonal, a matrix of
limited rank, entries under a mask, some of W's singular directions. For each of these the best X is known in closed
form (see ``solve``). A formula of one block is thereby solved; in one of several the blocks take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..algebra.nodes import (
    Diag,
    Diagonal,
    Expression,
    Gate,
    Hadamard,
    Identity,
    Leaf,
    Matrix,
    Product,
    Scale,
    Sparse,
    Sum,
    Transpose,
    Unit,
    times,
)
from .elements import is_free, is_positive, trainable

Kind = Literal["diagonal", "matrix", "entries", "directions", "scalar"]

BY_NORM = "_by_norm"
"""The suffix of a diagonal D after ``unit(X)`` when it stands for D over the column norms of X."""


@dataclass(frozen=True)
class Block:
    """One free part of a formula and its place: phi = constant + weight * (left @ X @ right), or X.T if ``flipped``.

    ``run`` holds the factors whose product is X; of a "scalar" X is that number and stands before ``right``.
    """

    kind: Kind
    run: tuple[Expression, ...]
    left: tuple[Expression, ...] = ()
    right: tuple[Expression, ...] = ()
    scalars: tuple[Expression, ...] = ()
    weight: Expression | None = None
    flipped: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The trainable factors in it."""
        return tuple(name for node in self.run for name in trainable(node))


def find_blocks(expression: Expression) -> list[Block] | None:
    """Return the blocks of a formula's matrix, None if some trainable factor lies in no place that can be solved."""
    found: list[Block] = []
    solvable = _visit(expression, Block("matrix", ()), found)
    named = [name for block in found for name in block.names]
    once = all(sum(name in getattr(node, "own_names", ()) for node in expression.walk()) == 1 for name in named)
    return found if solvable and once else None


def without_unit(node: Expression) -> Expression:
    """Write unit(X) @ D as X @ D_by_norm where D is a free diagonal: both reach the same matrices."""
    node = node.rebuilt(tuple(without_unit(child) for child in node.children)) if node.children else node
    if not isinstance(node, Product):
        return node
    factors: list[Expression] = []
    for factor in node.factors:
        before = factors[-1] if factors else None
        if isinstance(before, Unit) and isinstance(factor, Diagonal) and is_free(factor):
            factors[-1:] = [before.node, Diagonal(f"{factor.name}{BY_NORM}")]
        else:
            factors.append(factor)
    return Product(tuple(factors))


def norms_taken(expression: Expression) -> dict[str, Expression]:
    """Return for each diagonal that ``without_unit`` replaces the matrix whose column norms it is over."""
    return {
        factor.name: before.node
        for node in expression.walk()
        if isinstance(node, Product)
        for before, factor in zip(node.factors, node.factors[1:], strict=False)
        if isinstance(before, Unit) and isinstance(factor, Diagonal) and is_free(factor)
    }


def _visit(node: Expression, place: Block, found: list[Block]) -> bool:
    """Collect the blocks below a node. Returns whether all trainable factors below it are in blocks."""
    if not trainable(node):
        return True
    if isinstance(node, Sum) and not is_free(node):
        each = [_visit(term, place, found) for term in node.terms]  # all are visited, also behind one that fails
        return all(each)
    if isinstance(node, Scale):
        return _visit_scale(node, place, found)
    if isinstance(node, Product):
        return _visit_chain(node.factors, place, found)
    if isinstance(node, Sparse):
        found.append(_at(place, "entries", (node,)))
        return place.weight is None and not (place.left or place.right)
    if isinstance(node, Hadamard):
        outer = [child for child in node.children if not trainable(child) or isinstance(child, Gate)]
        inner = [child for child in node.children if child not in outer]
        if len(inner) != 1 or place.left or place.right or place.weight is not None:
            return False
        weighted = Block("matrix", (), scalars=place.scalars, weight=times(*outer), flipped=place.flipped)
        return _visit(inner[0], weighted, found)
    return _visit_chain((node,), place, found)


def _visit_scale(node: Scale, place: Block, found: list[Block]) -> bool:
    moving = [index for index, scalar in enumerate(node.scalars) if trainable(scalar)]
    if moving and not trainable(node.node):
        last, right = moving[-1], place.left if place.flipped else place.right
        scaled, scalars = times(*node.scalars[last + 1 :], node.node), (*place.scalars, *node.scalars[:last])
        own = Block("scalar", node.scalars[last : last + 1], place.left, (scaled, *right), scalars, None, place.flipped)
        found.append(own)
        return place.weight is None and not place.flipped
    # A trainable scalar before free factors adds nothing to what they reach: it stays where it is.
    scalars = (*place.scalars, *node.scalars)
    inner = Block("matrix", (), place.left, place.right, scalars, place.weight, place.flipped)
    return _visit(node.node, inner, found)


def _visit_chain(factors: Sequence[Expression], place: Block, found: list[Block]) -> bool:
    solvable, index = True, 0
    while index < len(factors):
        end, kind = _run(factors, index)
        if kind is not None:
            inner = _between(place, factors[:index], factors[end:])
            found.append(_at(inner, kind, tuple(factors[index:end])))
            # Beside an element-wise weight only what stands alone is solved.
            solvable &= place.weight is None or not (inner.left or inner.right)
        elif trainable(factors[index]):
            inner = _between(place, factors[:index], factors[index + 1 :])
            solvable &= _inside(factors[index], inner, found)
        index = end
    return solvable


def _inside(node: Expression, place: Block, found: list[Block]) -> bool:
    """Visit a factor that is not free as a whole."""
    if isinstance(node, Transpose):
        turned = Block(
            "matrix",
            (),
            tuple(factor.T for factor in reversed(place.right)),
            tuple(factor.T for factor in reversed(place.left)),
            place.scalars,
            place.weight,
            not place.flipped,
        )
        return place.weight is None and _visit(node.node, turned, found)
    if isinstance(node, (Sum, Scale, Product)):
        return _visit(node, place, found)
    return False


def _run(factors: Sequence[Expression], start: int) -> tuple[int, Kind | None]:
    """Return where the free run ends that starts here, and its kind; None if nothing free starts here."""
    if _are_directions(factors[start : start + 3]):
        return start + 3, "directions"
    if is_positive(factors[start]):
        return start + 1, "diagonal"
    if not is_free(factors[start]):
        return start + 1, None
    end = start + 1
    for index in range(start + 1, len(factors)):
        if is_free(factors[index]) and not _are_directions(factors[index : index + 3]):
            end = index + 1
        elif trainable(factors[index]) or not factors[index].diagonal or isinstance(factors[index], Identity):
            break
    return end, "diagonal" if all(factor.diagonal for factor in factors[start:end]) else "matrix"


def _are_directions(factors: Sequence[Expression]) -> bool:
    if len(factors) != 3:
        return False
    left, middle, right = factors
    chosen = isinstance(left, Matrix) and left.name == "U_k" and right == Transpose(Matrix("V_k"))
    return chosen and isinstance(middle, Diag) and isinstance(middle.node, Leaf) and is_free(middle)


def _between(place: Block, before: Sequence[Expression], after: Sequence[Expression]) -> Block:
    left, right = (*place.left, *before), (*after, *place.right)
    return Block("matrix", (), left, right, place.scalars, place.weight, place.flipped)


def _at(place: Block, kind: Kind, run: tuple[Expression, ...]) -> Block:
    return Block(kind, run, place.left, place.right, place.scalars, place.weight, place.flipped)
