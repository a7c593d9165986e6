"""Selections: how a method chooses, within a budget, what it trains: the entries of masks, or whole biases.

A method names its selection; everything that follows from the selection is defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import SubspaceError


class Choice(NamedTuple):
    """The choice: entries of matrices, as flat positions by module name, or whole modules."""

    positions: Mapping[str, Tensor] | None = None
    modules: tuple[str, ...] | None = None


class Selection:
    """One way to choose, described by ``text``; the other members are defaults that a selection may override."""

    text: str
    scored: Literal["weight", "bias"] = "weight"
    """The parameter of each module for whose entries ``choose`` needs scores."""
    needs_data = True
    settles_form = False
    """Whether the choice decides a matrix's form, or whether it is adapted at all."""

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        """Choose by scores.

        Args:
            scores: for each module the mean squared gradient of its W (n x m), or of its bias (m).
            budget: the total number of entries to train.
            rank: r.

        Raises:
            SubspaceError: the selection needs no data, or nothing fits into the budget.
        """
        raise SubspaceError(f"no data are used by a selection of {self.text}")

    def without_data(self, weight: Tensor, entries: int) -> Tensor:
        """Return the positions of the entries determined by W alone, or zeros to be overwritten."""
        return torch.zeros(entries, dtype=torch.int64)

    def rank(self, rank: int, entries: int) -> int:
        """Return the rank of a matrix with this many chosen entries."""
        return rank


class Magnitude(Selection):
    text = "the entries of W that are smallest in absolute value; no data needed"
    needs_data = False

    def without_data(self, weight: Tensor, entries: int) -> Tensor:
        if weight.is_meta:
            return super().without_data(weight, entries)
        magnitudes = weight.detach().abs().flatten().float()
        return magnitudes.topk(entries, largest=False).indices.sort().values


class Fisher(Selection):
    text = "the entries with the largest Fisher information, over all adapted matrices together"

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        device = next(iter(scores.values())).device  # a model may be spread over several devices
        together = torch.cat([square.flatten().to(device) for square in scores.values()])
        chosen = torch.zeros(len(together), dtype=torch.bool, device=together.device)
        chosen[together.topk(budget).indices] = True
        parts = chosen.split([square.numel() for square in scores.values()])
        return Choice({name: part.nonzero().flatten() for name, part in zip(scores, parts, strict=True)})


class Sensitivity(Fisher):
    text = "as fisher, but a matrix with more such entries than a low-rank term has parameters gets the term"
    settles_form = True

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        positions = super().choose(scores, budget, rank).positions
        assert positions is not None
        return Choice(
            {
                name: index if len(index) <= rank * sum(scores[name].shape) else index[:0]
                for name, index in positions.items()
            }
        )

    def rank(self, rank: int, entries: int) -> int:
        return 0 if entries else rank


class Importance(Selection):
    """To first order, a small gradient step lowers the loss by the step size times the squared gradient."""

    text = "the biases whose training lowers the loss most to first order, per parameter"
    scored = "bias"
    settles_form = True

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        best_first = sorted(scores, key=lambda name: float(scores[name].mean()), reverse=True)
        chosen = greedy_fit({name: scores[name].numel() for name in best_first}, budget)
        if not chosen:
            raise SubspaceError(
                f"budget = {budget:,} is below the smallest bias, of {min(map(len, scores.values())):,}"
            )
        return Choice(modules=tuple(chosen))


SELECTIONS: dict[str, Selection] = {
    "magnitude": Magnitude(),
    "fisher": Fisher(),
    "sensitivity": Sensitivity(),
    "importance": Importance(),
}


def greedy_fit(sizes: Mapping[str, int], budget: int) -> list[str]:
    """Return, in order, the names of the items that fit whole into a budget, skipping those that are too large."""
    chosen = []
    for name, size in sizes.items():
        if size <= budget:
            budget -= size
            chosen.append(name)
    return chosen
