"""How factors start, so that phi(W) = W before the first step.

A start is either *drawn* (or zero), or it is an *anchor*: a fixed nonzero value such as 1, the singular values or the
column norms. Of an anchored factor the parameter holds the offset from the anchor and starts at zero. Weight decay
then pulls the factor to its start, and with it the model to the frozen one, instead of pulling a scale to 0.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ..algebra import Formula, names
from ..algebra.nodes import Diagonal, Expression, Identity, Leaf, Matrix, Product, Scalar, Structure, Sum, Vector
from ..errors import SubspaceError, nearest
from ..linalg import Part, Spectrum, svd


@dataclass(frozen=True)
class Place:
    """What a start can look at: the factor's shape, the weight W (n x m), the parts of its decomposition, the scale."""

    shape: tuple[int, ...]
    weight: Tensor
    spectral: Mapping[str, Tensor]
    one_hot: bool = False  # the rows of W are looked up (an embedding): one input is 1, the others 0
    scale: float = 1.0
    cache: bool = True
    triples: dict[str, Spectrum] = field(default_factory=dict)  # shared by the factors of one matrix

    def singular_triples(self, part: Part) -> Spectrum:
        """Return the r largest or smallest singular triples of W; r is the factor's smaller dimension."""
        if part not in self.triples:
            self.triples[part] = svd(self.weight, min(self.shape), part, self.cache)
        return self.triples[part]


# Drawn starts return the parameter; anchors return the value that the parameter is the offset from.
DRAWN: dict[str, Callable[..., Tensor]] = {}
ANCHORS: dict[str, Callable[..., Tensor | float]] = {}


def drawn(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register a start under the function's name: ``f(place, *numbers) -> parameter``."""
    DRAWN[function.__name__] = function
    return function


def anchor(function: Callable[..., Tensor | float]) -> Callable[..., Tensor | float]:
    """Register an anchor under the function's name: ``f(place, *numbers) -> value``."""
    ANCHORS[function.__name__] = function
    return function


@drawn
def zeros(place: Place) -> Tensor:
    return torch.zeros(place.shape)


@drawn
def normal(place: Place, deviation: float = 1.0) -> Tensor:
    return torch.randn(place.shape) * deviation


@drawn
def kaiming_uniform(place: Place) -> Tensor:
    """As LoRA's A: uniform within 1 / sqrt(inputs), that is kaiming-uniform with a = sqrt(5)."""
    inputs = 1 if place.one_hot and place.shape[0] == place.weight.shape[0] else place.shape[0]
    return (2.0 * torch.rand(place.shape) - 1.0) / math.sqrt(inputs)


@drawn
def orthogonal(place: Place) -> Tensor:
    matrix = torch.empty(place.shape)
    torch.nn.init.orthogonal_(matrix)
    return matrix


@drawn
def paired(place: Place) -> Tensor:
    """Columns 1 and 2 are equal, 3 and 4, ...: reflected at each of a pair, a row is what it was."""
    n, r = place.shape
    if r % 2:
        raise SubspaceError(f"the start paired makes pairs of equal columns, and there are {r}: choose an even rank")
    return ((2.0 * torch.rand(n, r // 2) - 1.0) / math.sqrt(n)).repeat_interleave(2, dim=1)


@anchor
def ones(place: Place) -> float:
    return 1.0


@anchor
def constant(place: Place, value: float) -> float:
    return value


@anchor
def principal_left(place: Place) -> Tensor:
    """U_r sqrt(S_r / s), so that s times the product with ``principal_right`` is the leading part of W."""
    return _half(place, "top", left=True)


@anchor
def principal_right(place: Place) -> Tensor:
    return _half(place, "top", left=False)


@anchor
def minor_left(place: Place) -> Tensor:
    """As ``principal_left``, of the r smallest singular values."""
    return _half(place, "bottom", left=True)


@anchor
def minor_right(place: Place) -> Tensor:
    return _half(place, "bottom", left=False)


def _half(place: Place, part: Part, left: bool) -> Tensor:
    if place.weight.is_meta:
        return place.weight.new_empty(place.shape)
    U, S, V = place.singular_triples(part)
    root = (S / place.scale).sqrt()
    return U * root if left else (V * root).T


@anchor
def identity(place: Place) -> Tensor:
    return torch.eye(*place.shape)


@anchor
def singular_values(place: Place) -> Tensor:
    for name in ("S", "S_r"):
        if name in place.spectral and place.spectral[name].shape == place.shape:
            return place.spectral[name]
    raise SubspaceError("a start at the singular values needs a formula with U and V, or with U_r and V_r")


@anchor
def column_norms(place: Place) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(place.weight.to(_wide(place.weight)), dim=0)
    return norms


@anchor
def row_norms(place: Place) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(place.weight.to(_wide(place.weight)), dim=1)
    return norms


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


_CALL = re.compile(r"(\w+)(?:\((.*)\))?")


# How many dimensions a factor has at least for the start; any start fits none that it does not name.
_DIMENSIONS = {kaiming_uniform: 1, orthogonal: 2, paired: 2, identity: 2, principal_left: 2, principal_right: 2}
_DIMENSIONS |= {minor_left: 2, minor_right: 2}


def lookup(start: str) -> tuple[Callable[..., Tensor | float], tuple[float, ...], bool]:
    """Read ``name`` or ``name(number, ...)``: the function, its numbers, and whether it is an anchor.

    Raises SubspaceError for an unknown start, and for numbers that it does not take.
    """
    if not isinstance(start, str):
        raise SubspaceError(f"the start {start!r} is not a string such as 'zeros' or 'constant({start!r})'")
    match = _CALL.fullmatch(start.strip())
    name = match[1] if match else start
    if match is None or name not in DRAWN.keys() | ANCHORS.keys():
        raise SubspaceError(f"unknown start {start!r}; {nearest(name, DRAWN.keys() | ANCHORS.keys())}")
    try:
        numbers = tuple(float(number) for number in match[2].split(",")) if match[2] else ()
    except ValueError:
        raise SubspaceError(f"the start {start!r} takes numbers in its parentheses") from None
    function = ANCHORS[name] if name in ANCHORS else DRAWN[name]
    _check_numbers(start, function, numbers)
    return function, numbers, name in ANCHORS


def _check_numbers(start: str, function: Callable[..., Tensor | float], numbers: Sequence[float]) -> None:
    parameters = _numbers_of(function)
    least = sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
    if not least <= len(numbers) <= len(parameters):
        names_taken = ", ".join(parameter.name for parameter in parameters) or "none"
        raise SubspaceError(f"the start {start!r} has {len(numbers)} numbers; it takes {names_taken}")
    if not all(map(math.isfinite, numbers)):
        raise SubspaceError(f"the start {start!r} has a number that is not finite")
    if function is normal and numbers and numbers[0] < 0:
        raise SubspaceError(f"the start {start!r} has a negative deviation")


@cache
def _numbers_of(function: Callable[..., Tensor | float]) -> list[inspect.Parameter]:
    """Return the parameters of a start but for the place."""
    return list(inspect.signature(function).parameters.values())[1:]


def value_at_start(name: str, start: str, place: Place) -> Tensor | float:
    """Return a factor's value at its start: what is drawn, or the anchor.

    Raises SubspaceError if the start does not fit the factor's shape.
    """
    function, numbers, _ = lookup(start)
    needed = _DIMENSIONS.get(function, 0)
    kinds = ("a number", f"a vector of {place.shape[0]}" if place.shape else "", "a matrix")
    if len(place.shape) < needed:
        wanted = "matrices" if needed == 2 else "vectors and matrices"
        raise SubspaceError(f"the start {start} is for {wanted}, and {name} is {kinds[len(place.shape)]}")
    value = function(place, *numbers)
    if isinstance(value, Tensor) and tuple(value.shape) != tuple(place.shape):
        shapes = [" x ".join(map(str, shape)) or "a number" for shape in (value.shape, place.shape)]
        raise SubspaceError(f"the start {start} is {shapes[0]} and {name} is {shapes[1]}: it needs another start")
    return value


def takes_triples(start: str) -> bool:
    """Whether a start is made of r singular triples of W, of which there are min(n, m)."""
    return lookup(start)[0] in (principal_left, principal_right, minor_left, minor_right)


def fixed_number(start: str) -> float | None:
    """Return the number that an anchor stands for in every matrix, None if it depends on the matrix."""
    function, numbers, _ = lookup(start)
    return {ones: 1.0, constant: numbers[0] if numbers else None}.get(function)


def reads_weight(start: str) -> bool:
    """Whether a start is an anchor whose value depends on W."""
    function, _, anchored = lookup(start)
    return anchored and function not in (ones, constant, identity)


# The rules for a formula that does not say how its factors start


def infer_starts(formula: Formula, one_hot: bool = False) -> dict[str, str]:
    """Return the starts at which phi(W) = W, as far as the formula's form tells them.

    What multiplies W starts at 1 (a square matrix at the identity), sigma at the singular values, a diagonal beside
    ``unit`` at the norms that are taken there. Of each added product *one* trainable factor starts at zero, the last,
    and the others like LoRA's A; a bias starts at zero; a factor whose start is subtracted (``A @ B - A0 @ B0``) is
    drawn. An embedding's rows meet few updates each, so there the first factor starts at zero and the last is drawn,
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
    """Walks over a formula; the first rule that meets a factor holds for it."""

    formula: Formula
    one_hot: bool
    found: dict[str, str] = field(default_factory=dict)

    def start(self, name: str, start: str) -> None:
        if not names.is_frozen(name):
            self.found.setdefault(name, start)

    def drawn_start(self, name: str, matrix: str = "kaiming_uniform") -> str:
        return matrix if len(self.formula.shapes[name]) == 2 else "ones"

    # What must equal its frozen part

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

    # What must be zero

    def vanish(self, node: Expression) -> None:
        """Start the factors of an added term, which must be zero at the start.

        Where several children can each make a node zero, as the factors of a product can, one of them does.
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
        """Whether some trainable factor makes the node zero."""
        own = [name for name in node.own_names if not names.is_frozen(name)]
        if own:
            return all(self.found.get(name, "zeros") == "zeros" for name in own)
        return any(all(self.can_vanish(node.children[index]) for index in way) for way in _zeros(node))

    # What must be anything but zero

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
        """Start a sum at its frozen part; of numbers and diagonals without one, that are all 1, at the first term."""
        frozen = any(all(map(names.is_frozen, term.names)) for term in node.terms)
        for index, term in enumerate(node.terms):
            dense = any(len(self.formula.shapes.get(name, ())) == 2 for name in term.names)
            if self.can_vanish(term) and (frozen or (index > 0 and not dense)):
                self.vanish(term)
            else:
                self.draw(term, matrix)

    def start_below(self, node: Expression, start: str) -> None:
        """Start all factors of a node that says itself how; numbers at 1."""
        for part in node.walk():
            for name in part.own_names:
                self.start(name, "ones" if isinstance(part, Scalar) else start)


def _zeros(node: Expression) -> list[tuple[int, ...]]:
    """Return the sets of children that make a node zero; a matrix is never made zero by the number before it."""
    return [way for way in node.zero_when if node.is_number or not all(node.children[index].is_number for index in way)]


def _bends(node: Expression) -> bool:
    """Whether a factor of the node is a nonlinearity, or one that no start makes zero."""
    return any(not child.linear_map or (child.children and not child.zero_when) for child in node.children)


def _is_vector(node: Expression) -> bool:
    """Whether the node is the diagonal of one vector."""
    return node.diagonal and len(node.children) == 1 and isinstance(node.children[0], Vector)


def _kept_terms(node: Sum) -> tuple[Expression, ...]:
    """Return W where it stands alone, else the terms that carry it, else those that carry a part of it."""
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
