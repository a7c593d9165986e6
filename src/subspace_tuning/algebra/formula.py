"""A formula: an expression together with the shapes of its named tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from . import names
from .low_rank import LowRank, low_rank_terms
from .nodes import (
    Affine,
    Carried,
    Expression,
    Leaf,
    Product,
    Scale,
    Sparse,
    Sum,
    Transpose,
    Vector,
    add,
    product,
    substitute,
    symbol,
    times,
)
from .shapes import Shape, Sizes

_MOST_FACTORS = 12  # factors of a product whose change is expanded: into as many terms, each with as many factors


@dataclass(frozen=True)
class Formula:
    """phi(W) as an expression, with the symbolic shape of every name, over the dimensions of :class:`Sizes`.

    A diagonal's shape is the length of its vector; that of a mask or its entries is their number p; a scalar's is
    empty. Formulas are made by :func:`subspace_tuning.algebra.parse`.
    """

    expression: Expression
    shapes: Mapping[str, Shape]

    def __str__(self) -> str:
        return str(self.expression)

    def __repr__(self) -> str:
        return f"Formula({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self.expression)

    def derive(self) -> None:
        """Compute every cached property now: compiled code cannot take the lock of their first access."""
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                getattr(self, name)
        for node in (*self.expression.walk(), *self.evaluated.walk()):
            _ = node.names, node.has_matrix, node.is_shapeless

    @cached_property
    def collected(self) -> Expression:
        """The formula with its biases collected: ``affine(matrix, bias)``, or the matrix alone.

        ``affine(W, b) @ affine(D, d)`` is ``affine(W @ D, b @ D + d)``. A bias that does not name the layer's own is
        added to it. The formula is left as written if a nonlinearity precedes a bias.
        """
        matrix, bias = _affine_form(self.expression) or (self.expression, None)
        if bias is None:
            return self.expression
        return Affine(matrix, bias if "b" in bias.names else add(Vector("b"), bias))

    @property
    def matrix(self) -> Expression:
        """The formula without its bias."""
        return self.collected.matrix if isinstance(self.collected, Affine) else self.collected

    @property
    def bias(self) -> Expression | None:
        """The bias of the formula, or None if the layer's own is unchanged."""
        return self.collected.bias if isinstance(self.collected, Affine) else None

    @cached_property
    def evaluated(self) -> Expression:
        """The expression that is evaluated, equal to the formula, with its biases ``collected``.

        ``rest`` is W - U_r @ S_r @ V_r.T, so that no copy of W's size is kept. ``A @ B - A0 @ B0`` is evaluated as
        ``A_offset @ B + A0 @ B_offset``, and ``(U_r + A) @ S_r - U_r @ S_r`` as ``A @ S_r``: in a low precision the
        difference of two large products would be noise.
        """
        leading = symbol("U_r") @ symbol("S_r") @ symbol("V_r").T
        return _by_offsets(substitute(self.collected, {"rest": symbol("W") - leading}))

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """The names of the trainable factors, in reading order."""
        return tuple(name for name in self.expression.names if not names.is_frozen(name))

    @cached_property
    def spectral(self) -> tuple[str, ...]:
        """The names taken from W's singular value decomposition."""
        return tuple(name for name in self.evaluated.names if name in names.SPECTRAL_SHAPES)

    @cached_property
    def offsets(self) -> tuple[str, ...]:
        """The trainable factors whose offset from their start is evaluated."""
        evaluated = set(self.evaluated.names)
        return tuple(name for name in self.trainable if f"{name}{names.OFFSET}" in evaluated)

    @cached_property
    def has_rank(self) -> bool:
        """Whether the shapes depend on r."""
        return any("r" in shape for shape in self.shapes.values())

    @cached_property
    def names_bias(self) -> bool:
        """Whether the bias is inside phi, so that the layer must not add it again."""
        return "b" in self.collected.names

    @cached_property
    def wraps_norm(self) -> bool:
        """Whether phi is a map around a normalisation N instead of a matrix W; it is then m x m."""
        return "N" in self.expression.names

    @cached_property
    def chooses_directions(self) -> bool:
        """Whether singular directions of W are chosen during training."""
        return any(name in names.CHOSEN_SHAPES for name in self.expression.names)

    @cached_property
    def is_linear(self) -> bool:
        """Whether phi(W) is one matrix, or a matrix and a bias at the top."""
        return self.matrix.has_matrix

    @cached_property
    def has_gates(self) -> bool:
        """Whether entries pass through gates."""
        return any(node.is_random for node in self.expression.walk())

    @cached_property
    def masked(self) -> tuple[str, ...]:
        """The names of the masks."""
        return tuple(name for name in self.expression.names if names.is_mask(name))

    @cached_property
    def sparse(self) -> tuple[tuple[str, str], ...]:
        """The names of every mask and of the entries under it."""
        nodes = dict.fromkeys(node for node in self.expression.walk() if isinstance(node, Sparse))
        return tuple((node.mask, node.entries) for node in nodes)

    @cached_property
    def low_rank(self) -> tuple[LowRank, ...]:
        """The terms that pass through the rank, with the role of each factor, whatever it is called."""
        return tuple(low_rank_terms(self.expression, self.shapes, self.axes))

    @cached_property
    def windows(self) -> tuple[str, ...]:
        """The trained factors for single axes of a convolution's window."""
        return tuple(name for name in self.trainable if self.shapes[name][:1] and self.shapes[name][0][0] == "w")

    @cached_property
    def axes(self) -> int:
        """The number of axes of a convolution's window with their own factors; 0 for a formula on any layer."""
        return sum(dimension[0] == "w" for dimension in {one for shape in self.shapes.values() for one in shape})

    @cached_property
    def counted(self) -> str:
        """The number of trainable parameters as a polynomial in the dimensions, such as ``n * r + m * r``."""
        terms = Counter(tuple(sorted(self.shapes[name], key=_ORDER.index)) for name in self.trainable)
        return " + ".join(_monomial(number, dimensions) for dimensions, number in terms.items())

    def count(self, sizes: Sizes) -> int:
        """Return the number of trainable parameters for one matrix of these sizes."""
        return sum(math.prod(sizes.of(self.shapes[name])) for name in self.trainable)


_ORDER = ("n", "m", "k", "n1", "n2", "m1", "m2", "p", "q", "c", "w1", "w2", "w3", "g", "r", "v1", "v2", "v3")


def _monomial(number: int, dimensions: Shape) -> str:
    powers = [f"{name}**{power}" if power > 1 else name for name, power in Counter(dimensions).items()]
    return " * ".join(powers if number == 1 and powers else [str(number), *powers])


def _affine_form(node: Expression) -> tuple[Expression, Expression | None] | None:
    """Return (M, v) for the map x -> x @ M + v, with v None if it is 0; None if the node is not such a map."""
    if not any(isinstance(part, Affine) for part in node.walk()):
        return (node, None) if node.has_matrix else None
    if not isinstance(node, (Affine, Scale, Sum, Product)):
        return None
    forms = [_affine_form(child) for child in node.children if not isinstance(node, Affine) or child is node.matrix]
    known = [form for form in forms if form is not None]
    if len(known) < len(forms):
        return None
    matrices, biases = [matrix for matrix, _ in known], [bias for _, bias in known]
    if isinstance(node, Affine):
        return matrices[0], _total([biases[0], node.bias])
    if isinstance(node, Scale):
        return times(*matrices), None if biases[-1] is None else times(*node.scalars, biases[-1])
    if isinstance(node, Sum):
        return add(*matrices), _total(biases)
    return product(*matrices), _carried(matrices, biases)


def _carried(matrices: list[Expression], biases: list[Expression | None]) -> Expression | None:
    """Return the bias of a product of affine maps, by halves: one by one would take quadratic time."""
    if len(matrices) == 1:
        return biases[0]
    half = len(matrices) // 2
    first, last = _carried(matrices[:half], biases[:half]), _carried(matrices[half:], biases[half:])
    return _total([None if first is None else Carried(first, product(*matrices[half:])), last])


def _total(biases: list[Expression | None]) -> Expression | None:
    given = [bias for bias in biases if bias is not None]
    return add(*given) if given else None


def _by_offsets(node: Expression) -> Expression:
    """Return an equal expression in which P(A, B, ...) - P(A0, B0, ...) is written in the factors' offsets."""
    node = node.rebuilt(tuple(_by_offsets(child) for child in node.children)) if node.children else node
    if not isinstance(node, Sum):
        return node
    terms: dict[int, Expression] = dict(enumerate(node.terms))
    starts: dict[str, dict[int, Product]] = {}  # by the first factor, which must occur in the moved product, too
    for index, term in terms.items():
        if isinstance(term, Scale) and isinstance(start := -term, Product) and start.names:
            first = start.names[0]
            starts.setdefault(names.started(first) or first, {})[index] = start
    for index, moved in enumerate(node.terms):
        if not isinstance(moved, Product):
            continue
        for first, other in [(name, other) for name in moved.names for other in starts.get(name, ())]:
            change = _telescoped(moved, starts[first][other])
            if change is not None:
                terms[index] = change
                del terms[other], starts[first][other]
                break
    return add(*terms.values())


def _telescoped(moved: Product, start: Product) -> Expression | None:
    """Return moved - start as a sum with one changed factor per term, or None if their factors do not correspond.

    In each term the factors before the changed one have their start values, and those after it their current values.
    """
    if len(moved.factors) != len(start.factors) or len(moved.factors) > _MOST_FACTORS:
        return None
    changes: dict[int, Expression] = {}
    for index, (now, before) in enumerate(zip(moved.factors, start.factors, strict=True)):
        if now != before:
            change = _moved(now, before)
            if change is None:
                return None
            changes[index] = change
    terms = [product(*start.factors[:index], change, *moved.factors[index + 1 :]) for index, change in changes.items()]
    return add(*terms) if terms else None


def _moved(now: Expression, before: Expression) -> Expression | None:
    """Return the offset of a factor from its start: A - A0 under its offset's name, U + A - U as A."""
    if isinstance(now, Transpose) and isinstance(before, Transpose):
        change = _moved(now.node, before.node)
        return None if change is None else change.T
    if isinstance(now, Leaf) and before == symbol(names.start_of(now.name)):
        return symbol(f"{now.name}{names.OFFSET}")
    if isinstance(now, Sum) and before in now.terms:
        place = now.terms.index(before)
        return add(*now.terms[:place], *now.terms[place + 1 :])
    return None
