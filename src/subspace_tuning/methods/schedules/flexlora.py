"""FlexLoRA's ranks: matrices trade rank by how evenly they use their directions.

D is the diagonal between the factors of a low-rank term, whatever its name (see :mod:`.triplets`).

A matrix has r places for directions, some of them active. The evenness of a matrix is the entropy of its squared
diagonal over the active places, relative to its maximum ln(active): 1 if all are used equally, near 0 if one dominates.
Every ``interval`` steps between ``t_init`` and ``t_final`` before the end, the least even matrix gives up the active
direction with the smallest |D|, and the most even one activates a place, where D starts at 0, so that the output does
not jump. The sum of the ranks is constant.

Two cases in which the entropy is undefined count as 1: a matrix with one active direction (it uses all it has, and has
none to give), and one whose D is all zero (no direction is worse than another).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...documented import Range, documented
from ...errors import SubspaceError
from .base import Context, Options, Site, option, steps
from .triplets import OnTriplets, triplets_of


@documented
@dataclass(frozen=True)
class FlexLoRAOptions(Options):
    """FlexLoRA's settings."""

    target_rank: float | None = option(
        None, "the mean number of active directions, from the start on, up to r; None: half of r", Range(positive=True)
    )
    t_init: int | None = option(None, "steps before rank first moves; None: 0.1 of the run")
    t_final: int | None = option(None, "steps at the end in which the ranks are fixed; None: 0.2 of the run")
    interval: int | None = option(None, "steps from one move to the next; None: 0.01 of the run")


class FlexLoRA(OnTriplets):
    options_class = FlexLoRAOptions

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert isinstance(options, FlexLoRAOptions)
        self.t_init = steps(options.t_init, 0.1, self.total)
        self.t_final = steps(options.t_final, 0.2, self.total)
        self.interval = max(1, steps(options.interval, 0.01, self.total))
        self._need(
            self.t_init + self.t_final + 1, "its warm-up (t_init) and fixed end (t_final), with a step in between"
        )
        wanted = options.target_rank
        self.active: dict[str, Tensor] = {}
        for site in self.sites:
            count = max(1, site.rank // 2) if wanted is None else int(wanted)
            if not 1 <= count <= site.rank:
                raise SubspaceError(
                    f"schedule flexlora: target_rank = {wanted} is not between 1 and {site.rank}, the places of "
                    f"{site.name}"
                )
            self.active[site.name] = torch.arange(site.rank) < count

    @torch.no_grad()
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        if self.t_init < step <= self.total - self.t_final and step % self.interval == 0:
            self._trade()
        for site in self.sites:
            name = triplets_of(site.formula).diagonal
            diagonal = site.value(name)
            site.write(name, diagonal * self.active[site.name].to(diagonal))

    def _trade(self) -> None:
        givers = [site for site in self.sites if int(self.active[site.name].sum()) > 1]
        takers = [site for site in self.sites if not bool(self.active[site.name].all())]
        evenness = {site.name: evenness_of(_diagonal(site), self.active[site.name]) for site in self.sites}
        giver = min(givers, key=lambda site: evenness[site.name], default=None)
        taker = max(takers, key=lambda site: evenness[site.name], default=None)
        if giver is None or taker is None or evenness[giver.name] >= evenness[taker.name]:
            return
        magnitudes = _diagonal(giver).abs().cpu().masked_fill(~self.active[giver.name], math.inf)
        self.active[giver.name][magnitudes.argmin()] = False
        place = int((~self.active[taker.name]).float().argmax())
        self.active[taker.name][place] = True

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.active)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in state.items():
            self.active[name].copy_(tensor)

    def report(self) -> dict[str, Any]:
        return {"ranks": {name: int(active.sum()) for name, active in self.active.items()}}


def _diagonal(site: Site) -> Tensor:
    return site.value(triplets_of(site.formula).diagonal)


def evenness_of(diagonal: Tensor, active: Tensor) -> float:
    """Return the entropy of the squared active entries over its largest possible value, in [0, 1]."""
    energy = diagonal.detach().cpu()[active].double().square()
    total = energy.sum()
    if len(energy) < 2 or total == 0:
        return 1.0
    shares = energy / total
    return float(torch.special.entr(shares).sum()) / math.log(len(energy))
