"""Triplets, on which rank schedules act, of a low-rank term with a trained diagonal as its core.

A triplet is a column of the factor that leads down to the rank, an entry of the diagonal, and a row of the factor that
leads back up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...algebra import Formula
from ...algebra.low_rank import rank_axis
from .base import Schedule


class Triplets(NamedTuple):
    """The factors of the triplets: the diagonal, and the others with the axes along which triplets are counted."""

    diagonal: str
    axes: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """All factors."""
        return (*self.axes, self.diagonal)


class OnTriplets(Schedule):
    """A schedule that acts on triplets."""

    @classmethod
    def lacking(cls, formula: Formula) -> str | None:
        if triplets(formula) is None:
            return "one low-rank term with a trained diagonal between its factors, such as A @ D @ B"
        return None


def triplets(formula: Formula) -> Triplets | None:
    """Return the triplets of a formula, or None unless exactly one term consists of triplets."""
    if len(formula.low_rank) != 1:
        return None
    (term,) = formula.low_rank
    if term.diagonal is None or not term.is_free or formula.axes:
        return None
    axes = {name: rank_axis(formula.shapes[name]) for name in (*term.down.names, *term.up.names)}
    known = {name: axis for name, axis in axes.items() if axis is not None and len(formula.shapes[name]) == 2}
    return Triplets(term.diagonal, known) if known.keys() == axes.keys() else None


def triplets_of(formula: Formula) -> Triplets:
    """Return the triplets of a formula that is known to have them."""
    found = triplets(formula)
    assert found is not None, formula
    return found
