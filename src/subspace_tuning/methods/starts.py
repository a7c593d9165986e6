"""Starts of factors, such that phi(W) = W before the first step.

A start is either *drawn* (or zero), or an *anchor*: a fixed nonzero value such as 1, the singular values or the column
norms. The parameter of an anchored factor is its offset from the anchor, and starts at zero. Weight decay then pulls
the factor towards its start, and the model towards the frozen one, instead of pulling a scale to 0.
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

from ..algebra.rows import wide
from ..errors import SubspaceError, nearest
from ..linalg import Part, Spectrum, svd
from .start_rules import infer_starts as infer_starts


@dataclass(frozen=True)
class Place:
    """The data available to a start: the factor's shape, W (n x m), the parts of its decomposition, the scale."""

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


# Drawn starts return the parameter; anchors return the value from which the parameter is the offset.
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
    """Draw like LoRA's A: uniform within ± 1 / sqrt(inputs), which is Kaiming-uniform with a = sqrt(5)."""
    inputs = 1 if place.one_hot and place.shape[0] == place.weight.shape[0] else place.shape[0]
    return (2.0 * torch.rand(place.shape) - 1.0) / math.sqrt(inputs)


@drawn
def orthogonal(place: Place) -> Tensor:
    matrix = torch.empty(place.shape)
    torch.nn.init.orthogonal_(matrix)
    return matrix


@drawn
def paired(place: Place) -> Tensor:
    """Draw equal pairs of columns, 1 and 2, 3 and 4, ...: the two reflections of a pair cancel.

    An unpaired last column starts at zero, where it reflects nothing and has no gradient.
    """
    n, r = place.shape
    pairs = ((2.0 * torch.rand(n, r // 2) - 1.0) / math.sqrt(n)).repeat_interleave(2, dim=1)
    return torch.nn.functional.pad(pairs, (0, r % 2))


@anchor
def ones(place: Place) -> float:
    return 1.0


@anchor
def constant(place: Place, value: float) -> float:
    return value


@anchor
def principal_left(place: Place) -> Tensor:
    """Return U_r sqrt(S_r / s), so that s times the product with ``principal_right`` is the leading part of W."""
    return _half(place, "top", left=True)


@anchor
def principal_right(place: Place) -> Tensor:
    return _half(place, "top", left=False)


@anchor
def minor_left(place: Place) -> Tensor:
    """Return the same as ``principal_left``, for the r smallest singular values."""
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
    return wide(weight.dtype)


_CALL = re.compile(r"(\w+)(?:\((.*)\))?")


# The least number of dimensions of a factor for the start; 0 if not listed.
_DIMENSIONS = {kaiming_uniform: 1, orthogonal: 2, paired: 2, identity: 2, principal_left: 2, principal_right: 2}
_DIMENSIONS |= {minor_left: 2, minor_right: 2}


def lookup(start: str) -> tuple[Callable[..., Tensor | float], tuple[float, ...], bool]:
    """Parse ``name`` or ``name(number, ...)``: the function, its numbers, and whether it is an anchor.

    Raises SubspaceError for an unknown start, or for numbers that it does not take.
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
        raise SubspaceError(f"the start {start!r} has a negative standard deviation")


@cache
def _numbers_of(function: Callable[..., Tensor | float]) -> list[inspect.Parameter]:
    """Return the parameters of a start, except the place."""
    return list(inspect.signature(function).parameters.values())[1:]


def value_at_start(name: str, start: str, place: Place) -> Tensor | float:
    """Return a factor's value at its start: drawn, or the anchor.

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
    """Return whether a start uses r singular triples of W, of which there are min(n, m)."""
    return lookup(start)[0] in (principal_left, principal_right, minor_left, minor_right)


def fixed_number(start: str) -> float | None:
    """Return the number that an anchor is in every matrix, or None if it depends on the matrix."""
    function, numbers, _ = lookup(start)
    return {ones: 1.0, constant: numbers[0] if numbers else None}.get(function)


def reads_weight(start: str) -> bool:
    """Return whether a start is an anchor whose value depends on W."""
    function, _, anchored = lookup(start)
    return anchored and function not in (ones, constant, identity)
