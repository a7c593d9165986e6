"""How a method chooses, within a budget, what it trains: the entries of masks, or whole biases.

A method names its selection; what follows from one is said here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import SubspaceError


class Choice(NamedTuple):
    """What is to be trained: entries of matrices, as flat positions by the name of the module, or whole modules."""

    positions: Mapping[str, Tensor] | None = None
    modules: tuple[str, ...] | None = None


class Selection:
    """One way to choose. ``text`` says which; the other members hold where a selection does not say otherwise."""

    text: str
    scored: Literal["weight", "bias"] = "weight"
    """The parameter of each module for whose entries ``choose`` wants scores."""
    needs_data = True
    settles_form = False
    """Whether the choice decides what form a matrix gets, or whether it gets any."""

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        """Choose by scores.

        Args:
            scores: by module the mean squared gradient of its W (n x m), or of its bias (m).
            budget: how many entries may be trained in all.
            rank: r.

        Raises:
            SubspaceError: the selection needs no data, or nothing fits into the budget.
        """
        raise SubspaceError(f"nothing is chosen from data by what takes {self.text}")

    def without_data(self, weight: Tensor, entries: int) -> Tensor:
        """Return the positions of the entries that W alone tells; zeros, to be overwritten, where it tells none."""
        return torch.zeros(entries, dtype=torch.int64)

    def rank(self, rank: int, entries: int) -> int:
        """Return the rank of a matrix of which so many entries were chosen."""
        return rank


class Magnitude(Selection):
    text = "the entries of W that are smallest in absolute value; no data are needed"
    needs_data = False

    def without_data(self, weight: Tensor, entries: int) -> Tensor:
        if weight.is_meta:
            return super().without_data(weight, entries)
        magnitudes = weight.detach().abs().flatten().float()
        return magnitudes.topk(entries, largest=False).indices.sort().values


class Fisher(Selection):
    text = "the entries with the largest Fisher information, over all adapted matrices together"

    def choose(self, scores: Mapping[str, Tensor], budget: int, rank: int) -> Choice:
        device = next(iter(scores.values())).device  # a model may be spread over several
        together = torch.cat([square.flatten().to(device) for square in scores.values()])
        chosen = torch.zeros(len(together), dtype=torch.bool, device=together.device)
        chosen[together.topk(budget).indices] = True
        parts = chosen.split([square.numel() for square in scores.values()])
        return Choice({name: part.nonzero().flatten() for name, part in zip(scores, parts, strict=True)})


class Sensitivity(Fisher):
    text = "as fisher, but a matrix that holds more such entries than a low-rank term gets the latter"
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
    """A small step down the gradient lowers the loss by its length times the squared gradient, to first order."""

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
    """Return the names, in their order, of what fits whole into a budget; what is too large is passed over."""
    chosen = []
    for name, size in sizes.items():
        if size <= budget:
            budget -= size
            chosen.append(name)
    return chosen
