"""The strength t of an adapter: the layer's weight is W + t (phi(W) - W)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ..errors import SubspaceError, nearest


def strength(given: float) -> float:
    """Return a strength as a number. Raises SubspaceError if it is not one, or not finite."""
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SubspaceError(f"the strength of an adapter must be a finite number, got {given!r}")
    return number


def strengths(
    adapter_names: str | Sequence[str], weights: float | Sequence[float | None] | None, known: Collection[str]
) -> dict[str, float]:
    """Return the strength of each adapter, given as one for all, one for each, or None for 1.

    Raises SubspaceError for an unknown adapter, and for weights that are too many, too few or not finite.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    each: list[float | None] = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
    if len(each) != len(names):
        raise SubspaceError(f"{len(names)} adapters and {len(each)} weights: give one weight for each adapter")
    for name in names:
        if name not in known:
            raise SubspaceError(f"there is no adapter {name!r}; {nearest(name, known)}")
    return {name: 1.0 if own is None else strength(own) for name, own in zip(names, each, strict=True)}
