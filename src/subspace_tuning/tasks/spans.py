"""The best stretches of a text as a model's outputs have it, which read the text in overlapping parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Part(NamedTuple):
    """A part of a text as a model has read it, after the question.

    Attributes:
        logits: of a stretch's first and of its last token, tokens x 2.
        starts: for each token the character of the text at which it begins; -1 for tokens that are not of the text.
        ends: the character after it.
        none: the token that stands for no answer.
    """

    logits: NDArray[np.floating]
    starts: NDArray[np.integer]
    ends: NDArray[np.integer]
    none: int


class Span(NamedTuple):
    """A stretch of a text.

    Attributes:
        start, end: its first character, and the one after its last.
        score: the sum of its logits.
        probability: its share among all stretches that were looked at.
    """

    start: int
    end: int
    score: float
    probability: float


def best(parts: Sequence[Part], longest: int, count: int, *, none: bool) -> tuple[list[Span], Span]:
    """Return the best stretches of a text, and what speaks for none of them.

    Args:
        parts: of the text, which together hold all of it.
        longest: the most tokens of a stretch.
        count: how many stretches are returned, if there are so many.
        none: whether none of them counts as an answer of its own.

    Returns:
        The stretches in the order of their scores, and one without characters, whose score is the lowest of any part:
        a part that does not hold the answer says that there is none.
    """
    found: dict[tuple[int, int], float] = {}
    totals = []
    for part in parts:
        text = np.flatnonzero(part.starts >= 0)
        scores = _scores(part.logits[text], longest)
        if not scores.size:
            continue
        totals.append(np.logaddexp.reduce(scores, axis=None))
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        for first, further in zip(*np.unravel_index(order, scores.shape), strict=True):
            if np.isfinite(scores[first, further]):
                place = int(part.starts[text[first]]), int(part.ends[text[first + further]])
                found[place] = max(found.get(place, -np.inf), float(scores[first, further]))
    no_answer = min(float(part.logits[part.none].sum()) for part in parts)
    total = float(np.logaddexp.reduce([*totals, *([no_answer] if none else [])]))
    ranked = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:count]
    spans = [Span(*place, score, float(np.exp(score - total))) for place, score in ranked]
    return spans, Span(0, 0, no_answer, float(np.exp(no_answer - total)) if none else 0.0)


def _scores(logits: NDArray[Any], longest: int) -> NDArray[np.floating]:
    """The scores of stretches by their first token and the number of further ones, -inf beyond the end."""
    count = len(logits)
    last = np.arange(count)[:, None] + np.arange(min(longest, count))
    scores: NDArray[np.floating] = logits[:, :1] + logits[np.minimum(last, count - 1), 1]
    return np.where(last < count, scores, -np.inf)
