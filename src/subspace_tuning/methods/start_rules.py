"""Inferred starts: from the formula's form, such that phi(W) = W."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..algebra import Formula, names
from ..algebra.nodes import Diagonal, Expression, Identity, Leaf, Matrix, Product, Scalar, Structure, Sum, Vector


def infer_starts(formula: Formula, one_hot: bool = False) -> dict[str, str]:
    """Return the starts at which phi(W) = W, as far as they follow from the formula's form.

    A factor that multiplies W starts at 1 (a square matrix at the identity), sigma at the singular values, a diagonal
    beside ``unit`` at the norms computed there. In each added product *one* trainable factor, the last, starts at zero
    and the others like LoRA's A; a bias starts at zero; a factor whose start is subtracted (``A @ B - A0 @ B0``) is
    drawn. An embedding's rows get few updates each, so there the first factor starts at zero and the last is drawn,
    unless a nonlinearity between them would then have no gradient.
    """
    rules = _Rules(formula, one_hot)
    for name in formula.trainable:
        if names.start_of(name) in formula.shapes:
            rules.found[name] = rules.drawn_start(name)
    rules.keep(formula.expression)
    return {name: rules.found[name] for name in formula.trainable if name in rules.found}


@dataclass
class _Rules:
    """A walk over a formula; the first rule that reaches a factor decides its start."""

    formula: Formula
    one_hot: bool
    found: dict[str, str] = field(default_factory=dict)

    def start(self, name: str, start: str) -> None:
        if not names.is_frozen(name):
            self.found.setdefault(name, start)

    def drawn_start(self, name: str, matrix: str = "kaiming_uniform") -> str:
        return matrix if len(self.formula.shapes[name]) == 2 else "ones"

    # Nodes that must equal their frozen part

    def keep(self, node: Expression) -> None:
        """Start the factors below a node that must equal its frozen part at the start."""
        if isinstance(node, Sum):
            kept = _kept_terms(node)
            for term in node.terms:
                if term in kept:
                    self.keep(term)
                else:
                    self.vanish(term)
        elif isinstance(node, Product):
            self.keep_product(node.factors)
        elif node.identity_start is not None:
            self.start_below(node, node.identity_start)
        elif isinstance(node, Leaf):
            square = len(set(self.formula.shapes.get(node.name, ()))) == 1
            start = "identity" if isinstance(node, Matrix) and square else self.drawn_start(node.name)
            self.start(node.name, start)
        else:
            for name in node.own_names:  # entries under a mask
                self.start(name, "zeros")
            for index, child in enumerate(node.children):
                if index in node.identity_when or _holds_weight(child):
                    self.keep(child)
                else:
                    self.vanish(child)

    def keep_product(self, factors: Sequence[Expression]) -> None:
        values = {"S", "S_r"} & {name for factor in factors for name in factor.names}
        vectors = {"V", "V_r"} & {name for factor in factors for name in factor.names}
        for index, factor in enumerate(factors):
            before, after = factors[max(index - 1, 0) : index], factors[index + 1 : index + 2]
            columns = any(Structure.NORMALISED_COLUMNS in one.structure for one in before)
            rows = any(Structure.NORMALISED_ROWS in one.structure for one in after)
            if isinstance(factor, Diagonal) and (columns or rows):
                by_rows = self.formula.shapes[factor.name] == ("n",)
                self.start(factor.name, "row_norms" if by_rows else "column_norms")
            elif _is_vector(factor) and vectors and not values:
                self.start(factor.names[0], "singular_values")
            else:
                self.keep(factor)

    # Nodes that must be zero

    def vanish(self, node: Expression) -> None:
        """Start the factors of an added term, which must be zero at the start.

        If several children can each make a node zero, like the factors of a product, one of them does.
        """
        for name in node.own_names:
            self.start(name, "zeros")
        ways = _zeros(node)
        if node.children and not ways:  # it never is zero
            return self.draw(node)
        zero_first = self.one_hot and not _bends(node)
        able = [way for way in ways if all(self.can_vanish(node.children[index]) for index in way)]
        zero = able[0 if zero_first else -1] if able else ways[0] if len(ways) == 1 else ()
        matrix = "normal" if zero_first and len(able) > 1 else "kaiming_uniform"
        for index, child in enumerate(node.children):
            if index in zero:
                self.vanish(child)
            else:
                self.draw(child, matrix)

    def can_vanish(self, node: Expression) -> bool:
        """Return whether some trainable factor makes the node zero."""
        own = [name for name in node.own_names if not names.is_frozen(name)]
        if own:
            return all(self.found.get(name, "zeros") == "zeros" for name in own)
        return any(all(self.can_vanish(node.children[index]) for index in way) for way in _zeros(node))

    # Nodes that must not be zero

    def draw(self, node: Expression, matrix: str = "kaiming_uniform") -> None:
        """Start the factors of a node that may have any value, except that biases are zero."""
        if node.drawn_start is not None:
            self.start_below(node, node.drawn_start)
        elif isinstance(node, Leaf):
            self.start(node.name, self.drawn_start(node.name, matrix))
        elif isinstance(node, Sum):
            self.draw_sum(node, matrix)
        else:
            for index, child in enumerate(node.children):
                if index in node.identity_when:
                    self.draw(child, matrix)
                else:
                    self.vanish(child)

    def draw_sum(self, node: Sum, matrix: str) -> None:
        """Start a sum at its frozen part; a sum of numbers and diagonals without one, all at 1, at its first term."""
        frozen = any(all(map(names.is_frozen, term.names)) for term in node.terms)
        for index, term in enumerate(node.terms):
            dense = any(len(self.formula.shapes.get(name, ())) == 2 for name in term.names)
            if self.can_vanish(term) and (frozen or (index > 0 and not dense)):
                self.vanish(term)
            else:
                self.draw(term, matrix)

    def start_below(self, node: Expression, start: str) -> None:
        """Start all factors of a node that sets their start itself; numbers start at 1."""
        for part in node.walk():
            for name in part.own_names:
                self.start(name, "ones" if isinstance(part, Scalar) else start)


def _zeros(node: Expression) -> list[tuple[int, ...]]:
    """Return the sets of children that make a node zero; a matrix is never made zero by the number before it."""
    return [way for way in node.zero_when if node.is_number or not all(node.children[index].is_number for index in way)]


def _bends(node: Expression) -> bool:
    """Return whether a factor of the node is a nonlinearity, or cannot be zero at any start."""
    return any(not child.linear_map or (child.children and not child.zero_when) for child in node.children)


def _is_vector(node: Expression) -> bool:
    """Return whether the node is the diagonal of one vector."""
    return node.diagonal and len(node.children) == 1 and isinstance(node.children[0], Vector)


def _kept_terms(node: Sum) -> tuple[Expression, ...]:
    """Return W if it is a term, otherwise the terms that contain it, otherwise those that contain a part of it."""
    for frozen in (_is_weight, _holds_weight, _holds_part):
        kept = tuple(term for term in node.terms if frozen(term))
        if kept:
            return kept
    return ()


def _is_weight(node: Expression) -> bool:
    return isinstance(node, Leaf) and node.name in ("W", "b")


def _holds_weight(node: Expression) -> bool:
    return _is_weight(node) or (node.holds_weight and any(map(_holds_weight, node.children)))


def _holds_part(node: Expression) -> bool:
    if isinstance(node, Identity) or (isinstance(node, Leaf) and node.name in names.SPECTRAL_SHAPES):
        return True
    return node.holds_weight and any(map(_holds_part, node.children))
