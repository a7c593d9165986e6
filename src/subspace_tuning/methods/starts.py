"""How factors start, so that phi(W) = W before the first step.

A start is either *drawn* (or zero), or it is an *anchor*: a fixed nonzero value such as 1, the singular values or the
column norms. Of an anchored factor the parameter holds the offset from the anchor and starts at zero. Weight decay
then pulls the factor to its start, and with it the model to the frozen one, instead of pulling a scale to 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..algebra import names
from ..algebra.formula import Formula
from ..algebra.gate import Gate
from ..algebra.nodes import (
    Activation,
    Affine,
    Diag,
    Diagonal,
    Elementwise,
    Expression,
    Hadamard,
    Identity,
    Leaf,
    Matrix,
    Product,
    Scalar,
    Scale,
    Sparse,
    Sum,
    Transpose,
    Vector,
)
from ..algebra.svd import Part, Spectrum, svd
from ..algebra.unit import Unit
from ..errors import SubspaceError, nearest


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


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


OPEN = 1.5  # logits of gates at the start: nine tenths open, where the gradient does not vanish
_CALL = re.compile(r"(\w+)(?:\((.*)\))?")


def lookup(start: str) -> tuple[Callable[..., Tensor | float], tuple[float, ...], bool]:
    """Read ``name`` or ``name(number, ...)``: the function, its numbers, and whether it is an anchor.

    Raises SubspaceError for an unknown start.
    """
    match = _CALL.fullmatch(start.strip())
    name = match[1] if match else start
    if match is None or name not in DRAWN.keys() | ANCHORS.keys():
        raise SubspaceError(f"unknown start {start!r}; {nearest(name, DRAWN.keys() | ANCHORS.keys())}")
    try:
        numbers = tuple(float(number) for number in match[2].split(",")) if match[2] else ()
    except ValueError:
        raise SubspaceError(f"the start {start!r} takes numbers in its parentheses") from None
    return (ANCHORS[name], numbers, True) if name in ANCHORS else (DRAWN[name], numbers, False)


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

    What multiplies W starts at 1 (a square matrix at the identity), sigma at the singular values, a diagonal after
    ``unit`` at the column norms. In each added term the last trainable factor starts at zero and the others like
    LoRA's A. An embedding's rows meet few updates each, so there the first factor starts at zero and the last is
    drawn, unless a nonlinearity between them would then have no gradient.
    """
    found: dict[str, str] = {}
    _keep(formula.expression, formula, one_hot, found)
    return found


def _keep(node: Expression, formula: Formula, one_hot: bool, found: dict[str, str]) -> None:
    """Start the factors below a node that must equal its frozen part at the start."""
    if isinstance(node, Sum):
        kept = _kept_terms(node)
        for term in node.terms:
            if term in kept:
                _keep(term, formula, one_hot, found)
            else:
                _vanish(term, formula, one_hot, found)
        return
    after_unit = False
    for part in node.factors if isinstance(node, Product) else (node,):
        if isinstance(part, (Diagonal, Vector, Scalar, Matrix)):
            if not names.is_frozen(part.name):
                found.setdefault(part.name, _start_of_kept(part, formula, after_unit))
        elif isinstance(part, Diag) and isinstance(part.node, Vector):
            sigma = any(name in formula.expression.names for name in ("V", "V_r"))
            found.setdefault(part.node.name, "singular_values" if sigma else "ones")
        else:
            for child in (part,) if isinstance(part, Sum) else part.children:
                _keep(child, formula, one_hot, found)
        after_unit = isinstance(part, Unit)


def _start_of_kept(leaf: Leaf, formula: Formula, after_unit: bool) -> str:
    if isinstance(leaf, Matrix):
        shape = formula.shapes[leaf.name]
        return "identity" if shape[0] == shape[-1] else "kaiming_uniform"
    return "column_norms" if after_unit else "ones"


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
    if isinstance(node, Hadamard):
        return False
    return _is_weight(node) or any(map(_holds_weight, node.children))


def _holds_part(node: Expression) -> bool:
    if isinstance(node, (Hadamard, Identity)):
        return isinstance(node, Identity)
    frozen = isinstance(node, Leaf) and node.name in names.SPECTRAL_SHAPES
    return frozen or any(map(_holds_part, node.children))


def _vanish(node: Expression, formula: Formula, one_hot: bool, found: dict[str, str]) -> None:
    """Start the factors of an added term, which must be zero at the start."""
    if isinstance(node, Sum):
        if any(names.is_start(name) for name in node.names):  # A @ B - A0 @ B0 vanishes by itself
            for name in node.names:
                if not names.is_frozen(name):
                    found.setdefault(name, "kaiming_uniform")
            return
        for term in node.terms:
            _vanish(term, formula, one_hot, found)
        return
    if isinstance(node, (Scale, Transpose, Elementwise)):
        if isinstance(node, Scale) and isinstance(node.scalar, Scalar) and not names.is_frozen(node.scalar.name):
            found.setdefault(node.scalar.name, "ones")
        _vanish(node.children[-1], formula, one_hot, found)
        return
    if isinstance(node, Sparse):
        found.setdefault(node.entries, "zeros")
        return
    factors = node.factors if isinstance(node, Product) else node.children or (node,)
    trainable = [factor for factor in factors if any(not names.is_frozen(name) for name in factor.names)]
    fixed = any(isinstance(factor, (Activation, Affine, Gate)) for factor in factors)
    zero_first = one_hot and not fixed and len(trainable) > 1
    zero = trainable[0 if zero_first else -1] if trainable else None
    for factor in trainable:
        if isinstance(node, Hadamard) and isinstance(factor, Product):
            _vanish(factor, formula, one_hot, found)
            continue
        if isinstance(factor, Gate):
            found.update({name: f"constant({OPEN})" for name in factor.names if name not in found})
            continue
        for name in factor.names:
            if not names.is_frozen(name):
                vector = len(formula.shapes[name]) < 2
                at_zero = factor is zero or (vector and isinstance(factor, Affine))
                other = "ones" if vector else "normal" if zero_first else "kaiming_uniform"
                found.setdefault(name, "zeros" if at_zero else other)
