"""The best spans of a context that a model has read in overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """A window of a context, as a model has read it after the question.

    Attributes:
        logits: those of a span's first and last token, tokens x 2.
        starts: the first character of each token in the context; -1 for tokens outside the context.
        ends: the character after each token.
        none: the index of the token for "no answer".
    """

    logits: NDArray[np.floating]
    starts: NDArray[np.integer]
    ends: NDArray[np.integer]
    none: int


class Span(NamedTuple):
    """A span of a context.

    Attributes:
        start, end: its first character, and the character after its last.
        score: the sum of its two logits.
        probability: its softmax probability among all candidate spans of all windows.
    """

    start: int
    end: int
    score: float
    probability: float


def best(windows: Sequence[Window], longest: int, count: int, *, none: bool) -> tuple[list[Span], Span]:
    """Return the best spans of a context, and the score of "no answer".

    Args:
        windows: the windows, which together cover the context.
        longest: the most tokens of a span.
        count: the most spans to return.
        none: whether "no answer" is a candidate.

    Returns:
        The spans by descending score, and an empty span for "no answer", whose score is the lowest over the windows: a
        window without the answer says nothing about the others.
    """
    found: dict[tuple[int, int], float] = {}
    totals = []
    for window in windows:
        text = np.flatnonzero(window.starts >= 0)
        scores = _scores(window.logits[text], longest)
        if not scores.size:
            continue
        totals.append(np.logaddexp.reduce(scores, axis=None))
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        for first, further in zip(*np.unravel_index(order, scores.shape), strict=True):
            if np.isfinite(scores[first, further]):
                place = int(window.starts[text[first]]), int(window.ends[text[first + further]])
                found[place] = max(found.get(place, -np.inf), float(scores[first, further]))
    no_answer = min(float(window.logits[window.none].sum()) for window in windows)
    total = float(np.logaddexp.reduce([*totals, *([no_answer] if none else [])]))
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:count]
    spans = [Span(*place, score, float(np.exp(score - total))) for place, score in ranked]
    return spans, Span(0, 0, no_answer, float(np.exp(no_answer - total)) if none else 0.0)


def _scores(logits: NDArray[Any], longest: int) -> NDArray[np.floating]:
    """Return the scores of spans by first token and number of further tokens; -inf past the end."""
    count = len(logits)
    last = np.arange(count)[:, None] + np.arange(min(longest, count))
    scores: NDArray[np.floating] = logits[:, :1] + logits[np.minimum(last, count - 1), 1]
    return np.where(last < count, scores, -np.inf)
