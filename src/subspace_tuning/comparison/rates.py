"""Learning rates: the middle of a row's grid, and the choice among rates by the scores of their runs.

A grid is geometric: the rate at step k is middle * factor^k. It begins with `tries` steps around 0. If the best rate is
at an edge, one step is added there and the step at the other end no longer counts. So `tries` consecutive rates count
for every row, however often its grid was extended.

Examples:
    >>> first_steps(5), first_steps(4)
    ([-2, -1, 0, 1, 2], [-1, 0, 1, 2])
    >>> decide({-1: 0.5, 0: 0.7, 1: 0.6}, tries=3, extensions=1)
    Decision(best=0, added=None)
    >>> decide({-1: 0.5, 0: 0.6, 1: 0.7}, tries=3, extensions=1)
    Decision(best=1, added=2)
    >>> decide({-1: 0.5, 0: 0.6, 1: 0.7, 2: None}, tries=3, extensions=1)
    Decision(best=1, added=None)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..counting.rates import ModelRates, rates_in
from ..errors import SubspaceError
from ..models.meta import architecture_of
from ..training.attach import build_adapter, default_learning_rate
from ..training.sections import FULL, HEAD, AdapterSection
from ..tuner import SubspaceConfig


class Middles:
    """The learning rates around which grids lie if the config gives none: as the default rates of runs."""

    def __init__(self) -> None:
        self._models: dict[str, ModelRates] = {}
        self._known: dict[tuple[str, str], float] = {}

    def of(self, model: str, adapter: AdapterSection) -> float:
        """Return the middle for an adapter, at its final size, in a model. Each is derived once."""
        key = model, repr(adapter)
        if key not in self._known:
            self._known[key] = self._found(model, adapter)
        return self._known[key]

    def _found(self, model: str, adapter: AdapterSection) -> float:
        constant = default_learning_rate(adapter)
        config = None if adapter.method in (FULL, HEAD) else build_adapter(adapter, ())
        if not isinstance(config, SubspaceConfig) or not config.resolved.derives_rate:
            return constant
        if model not in self._models:
            self._models[model] = rates_in(model, architecture_of(model))
        try:
            return self._models[model].derived(config)
        except SubspaceError:  # none follows, so a run takes the constant
            return constant


def first_steps(tries: int) -> list[int]:
    """Return the steps with which a grid begins."""
    lowest = -((tries - 1) // 2)
    return list(range(lowest, lowest + tries))


def rate_at(middle: float, factor: float, step: int) -> float:
    """Return the rate at a step of a grid, with four significant digits, as it is printed."""
    return float(f"{middle * factor**step:.4g}")


class Decision(NamedTuple):
    """What the scores of a grid say.

    Attributes:
        best: the step of the best rate; None if every run failed.
        added: the step by which the grid is to be extended; None if the choice stands.
    """

    best: int | None
    added: int | None


def counting(steps: Iterable[int], tries: int) -> list[int]:
    """Return the steps that count: `tries` consecutive ones that end where the grid was extended."""
    known, first = sorted(steps), first_steps(tries)
    return known[-tries:] if known[-1] > first[-1] else known[:tries]


def decide(scores: Mapping[int, float | None], *, tries: int, extensions: int) -> Decision:
    """Return the best step of a grid, and whether to extend it.

    Args:
        scores: the mean score of each step, larger is better; None if a run failed, such as one that diverged.
        tries: the number of rates that count.
        extensions: how often a grid may be extended.
    """
    steps = counting(scores, tries)
    # Of equal scores the one nearest the middle is chosen, and of these the lower rate.
    ranked = sorted(steps, key=lambda step: (-_value(scores[step]), abs(step), step))
    best = ranked[0]
    if scores[best] is None:
        return Decision(None, None)
    if len(scores) - tries >= extensions:
        return Decision(best, None)
    if best == steps[-1] and best == max(scores):
        return Decision(best, best + 1)
    if best == steps[0] and best == min(scores):
        return Decision(best, best - 1)
    return Decision(best, None)


def _value(score: float | None) -> float:
    return -math.inf if score is None else score
