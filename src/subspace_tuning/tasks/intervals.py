"""Confidence intervals of figures, from samples of the rows.

Examples:
    >>> right = np.array([1.0] * 8 + [0.0] * 2)
    >>> interval(lambda rows: right[rows].mean(), range(10), 0.8)
    (0.5, 1.0)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Figure: TypeAlias = Callable[[NDArray[np.intp]], float]
"""A figure as a function of the numbers of the rows that count; a row may count several times."""

SAMPLES = 1000


def interval(figure: Figure, groups: Sequence[Hashable], value: float) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a figure: the 2.5th and the 97.5th percentile over samples of the rows.

    A sample has as many groups as there are, drawn with replacement, and all rows of each. The samples are the same in
    every call.

    Args:
        figure: the figure of a sample.
        groups: a key for each row; rows with equal keys are drawn together.
        value: the figure of all rows, which the interval always contains.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    parts = [np.array(rows) for rows in members.values()]
    rng = np.random.default_rng(0)

    def sample() -> NDArray[np.intp]:
        drawn = rng.integers(len(parts), size=len(parts))
        if len(parts) == len(groups):  # each group is one row
            return drawn
        return np.concatenate([parts[group] for group in drawn])

    low, high = np.percentile([figure(sample()) for _ in range(SAMPLES)], [2.5, 97.5])
    return min(float(low), value), max(float(high), value)


def of_rows(values: Any, rows: NDArray[np.intp]) -> Any:
    """Return the entries of an array or a list for rows."""
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def f1(hits: NDArray[np.generic], claims: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return F1 from the number of hits, and of claims and truths together; 0 where there are none."""
    return np.asarray(2 * hits / np.maximum(claims, 1), dtype=np.float64)
