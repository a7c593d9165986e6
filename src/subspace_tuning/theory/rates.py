"""Learning rates at which formulas travel alike (see :mod:`.travel`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import SubspaceError
from .travel import Course

REFERENCE, RANK, ALPHA, RATE = "lora", 8, 16.0, 1e-3
"""The method, size and learning rate whose travel every other rate is matched to: LoRA at its defaults."""

_LEAST, _MOST = 1e-9, 1e3
_STRIDE = math.log(8.0)
_CLOSE = 0.02  # of travel
_TRIES = 40


def travelled(courses: Sequence[Course], rate: float) -> float:
    """Return the travel of all matrices of a model together at a learning rate."""
    return sum(course.travel(rate) for course in courses)


def matched(courses: Sequence[Course], target: float, guess: float = RATE) -> float:
    """Return the learning rate at which the matrices of a model travel a given distance together, within 2 %.

    Args:
        courses: the matrices under one method.
        target: the distance.
        guess: the rate to try first.

    Raises:
        SubspaceError: no rate leads that far: the formula does not move, or phi(W) is bounded.
    """
    tried: list[tuple[float, float]] = []  # logarithms of the rate and of travel over the target
    low, high = math.log(_LEAST), math.log(_MOST)
    at = math.log(guess)
    for _ in range(_TRIES):
        ratio = travelled(courses, math.exp(at)) / target
        gap = math.log(ratio) if ratio > 0 and math.isfinite(ratio) else -math.inf
        if abs(gap) <= _CLOSE:
            return math.exp(at)
        low, high = (at, high) if gap < 0 else (low, at)
        if high - low < 1e-3:
            break
        tried = [*tried[-1:], (at, gap)]
        at = _next(tried, low, high)
    moves = any(gap > -math.inf for _, gap in tried)
    raise SubspaceError(
        "no learning rate follows from the formula: "
        + ("phi(W) cannot move as far as LoRA moves it" if moves else "no step moves phi(W)")
    )


def _next(tried: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Return the rate where a line through the last two points ends, kept between the bounds; logarithms."""
    (at, gap), slope = tried[-1], 1.0
    if len(tried) == 2 and math.isfinite(tried[0][1]):
        slope = (gap - tried[0][1]) / (at - tried[0][0])
    if not math.isfinite(gap) or slope < 0.1:
        stride = _STRIDE if gap < 0 else -_STRIDE
    else:
        stride = max(-_STRIDE, min(_STRIDE, -gap / slope))
    return at + stride if low < at + stride < high else (low + high) / 2
