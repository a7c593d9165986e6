"""FISH-DIP's masks: renewed during training by the Fisher information of the examples with the largest loss.

The number of entries per matrix is constant. Entries that stay keep their place in Delta, and with it their optimiser
state. A new entry takes the place of one that leaves and starts at 0; if the optimiser is passed to the step, its state
there is reset. Entries that leave return to W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...algebra import Formula
from ...documented import documented
from ...errors import SubspaceError
from .base import Context, Options, Schedule, Site, option, steps


@documented
@dataclass(frozen=True)
class DynamicMaskOptions(Options):
    """FISH-DIP's settings."""

    interval: int | None = option(None, "steps from one renewal of the mask to the next; None: 0.1 of the run")
    t_final: int | None = option(None, "steps at the end in which the mask is fixed; None: 0.1 of the run")


class DynamicMask(Schedule):
    options_class = DynamicMaskOptions
    looks_at_examples = True
    moves_entries = True

    @classmethod
    def lacking(cls, formula: Formula) -> str | None:
        return None if formula.sparse else "sparse entries under a mask, such as M * Delta"

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert isinstance(options, DynamicMaskOptions)
        self.interval = max(1, steps(options.interval, 0.1, self.total))
        self.t_final = steps(options.t_final, 0.1, self.total)
        self._need(self.interval + self.t_final, "its first renewal (interval) and its fixed end (t_final)")
        if context.scores is None:
            raise SubspaceError(
                "the schedule dynamic_mask needs training examples: give `scores`, as `subspace train` does"
            )
        self.renewed = 0

    @torch.no_grad()
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        if step % self.interval or step > self.total - self.t_final:
            return
        assert self.context.scores is not None
        with torch.enable_grad():
            scores = self.context.scores()
        for site in self.sites:
            self.renewed += renew(site, scores[site.name], optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        # The masks are saved with the adapter.
        return {"renewed": torch.tensor(self.renewed)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.renewed = int(state["renewed"])

    def report(self) -> dict[str, Any]:
        return {"entries_exchanged": self.renewed}


def renew(site: Site, scores: Tensor, optimizer: Optimizer | None = None) -> int:
    """Move the masks to the entries with the largest scores; return how many entries were exchanged."""
    exchanged = 0
    for name, entries in site.formula.sparse:
        mask, values = site.constants[name], site.value(entries).clone()
        best = scores.flatten().topk(mask.numel()).indices.to(mask.device)
        leaves = ~torch.isin(mask, best)
        comes = best[~torch.isin(best, mask)].sort().values
        mask[leaves] = comes
        values[leaves] = 0.0
        site.write(entries, values)
        if optimizer is not None:
            site.forget(entries, leaves, optimizer)
        exchanged += len(comes)
    return exchanged
