"""AdaLoRA's budget: the least important triplets (column of A, entry of D, row of B) have their entry of D zeroed.

The factors are identified by their roles in the formula (see :mod:`.triplets`): any A @ D @ B works, under any names.

Importance is sensitivity |p * gradient| times its uncertainty, both smoothed (arXiv 2303.10512, section 3.2). After
``t_init`` steps the number of kept triplets falls along a cubic to ``target_rank`` per matrix, which it reaches
``t_final`` steps before the end; from then on the choice is fixed. Optimiser and learning rate are untouched: until
then a zeroed triplet can come back, as its D keeps moving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...documented import Range, documented
from ...errors import SubspaceError
from .base import Context, Options, option, steps
from .triplets import OnTriplets, triplets_of


@documented
@dataclass(frozen=True)
class AdaLoRAOptions(Options):
    """AdaLoRA's settings."""

    target_rank: float | None = option(None, "the mean rank at the end, up to r; None: 2/3 of r", Range(positive=True))
    t_init: int | None = option(None, "steps of warm-up, before the first pruning; None: 0.15 of the run")
    t_final: int | None = option(None, "steps at the end in which the ranks are fixed; None: 0.3 of the run")
    interval: int | None = option(None, "steps from one pruning to the next; None: 0.01 of the run")
    beta_sensitivity: float = option(0.85, "the decay of the running mean of the sensitivity")
    beta_uncertainty: float = option(0.85, "the decay of the running mean of the uncertainty")


class AdaLoRA(OnTriplets):
    options_class = AdaLoRAOptions

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert isinstance(options, AdaLoRAOptions)
        self.start = sum(site.rank for site in self.sites)
        wanted = options.target_rank
        self.target = sum(
            max(1, round(site.rank / 1.5)) if wanted is None else min(int(wanted), site.rank) for site in self.sites
        )
        if wanted is not None and not 0 < wanted <= max(site.rank for site in self.sites):
            raise SubspaceError(
                f"schedule adalora: target_rank = {wanted} is not between 1 and the rank r at the start"
            )
        self.t_init = steps(options.t_init, 0.15, self.total)
        self.t_final = steps(options.t_final, 0.3, self.total)
        self.interval = max(1, steps(options.interval, 0.01, self.total))
        self._need(
            self.t_init + self.t_final + 1, "its warm-up (t_init) and fixed end (t_final), with a step in between"
        )
        self.betas = options.beta_sensitivity, options.beta_uncertainty
        self.importance: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.seen = False

    def budget(self, step: int) -> int:
        """Return how many triplets are kept after a step."""
        if step <= self.t_init:
            return self.start
        left = max(0.0, 1.0 - (step - self.t_init) / (self.total - self.t_final - self.t_init))
        return int((self.start - self.target) * left**3 + self.target)

    @torch.no_grad()
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        last = self.total - self.t_final
        if step < last:
            self._observe()
        if step == last or (self.t_init < step < last and step % self.interval == 0):
            self.kept = self._choose(self.budget(step))
            self._apply()
        elif step > last:
            self._apply()

    def _observe(self) -> None:
        """Update the averages with a step's gradients, unless they are not finite (a loss scaler skips that step)."""
        names = {site.name: triplets_of(site.formula).names for site in self.sites}
        gradients = {(site.name, name): site.gradient(name) for site in self.sites for name in names[site.name]}
        known = [gradient for gradient in gradients.values() if gradient is not None]
        self.seen = self.seen or bool(known)
        finite = [torch.isfinite(gradient).all() for gradient in known]
        if not finite or not bool(torch.stack([flag.to(finite[0].device) for flag in finite]).all()):
            return
        smooth, spread = self.betas
        for site in self.sites:
            for name in names[site.name]:
                gradient, key = gradients[site.name, name], f"{site.name}.{name}"
                if gradient is None:
                    continue
                sensitivity = (site.value(name) * gradient).abs().float()
                zero = torch.zeros_like(sensitivity)
                before, spread_before = (
                    average.get(key, zero).to(zero.device) for average in (self.importance, self.uncertainty)
                )
                mean = smooth * before + (1.0 - smooth) * sensitivity
                self.importance[key] = mean
                self.uncertainty[key] = spread * spread_before + (1.0 - spread) * (sensitivity - mean).abs()

    def scores(self) -> dict[str, Tensor]:
        """Return the importance of every triplet: that of D's entry plus the means over A's column and B's row."""

        def score(key: str) -> Tensor:
            return self.importance[key] * self.uncertainty[key]

        found = {}
        for site in self.sites:
            diagonal, axes = triplets_of(site.formula)
            found[site.name] = score(f"{site.name}.{diagonal}")
            for name, axis in axes.items():
                found[site.name] = found[site.name] + score(f"{site.name}.{name}").mean(1 - axis)
        return found

    def _choose(self, budget: int) -> dict[str, Tensor]:
        """Return for each matrix which triplets are kept: the ``budget`` best over all matrices."""
        if not (self.seen or self.importance):
            raise SubspaceError(
                "schedule adalora has seen no gradient: call its step after the optimiser's and before zero_grad"
            )
        missing = [
            site.name
            for site in self.sites
            if f"{site.name}.{triplets_of(site.formula).diagonal}" not in self.importance
        ]
        if missing and self.importance:
            raise SubspaceError(
                f"schedule adalora: {missing[0]} has had no gradient: its part of the model is not used"
            )
        if missing:  # a loss scaler has skipped every step so far
            return self.kept
        scores = self.scores()
        home = scores[self.sites[0].name].device
        together = torch.cat([scores[site.name].to(home) for site in self.sites])
        keep = torch.zeros(len(together), dtype=torch.bool, device=home)
        keep[together.sort(descending=True, stable=True).indices[:budget]] = True
        return dict(zip(scores, keep.split([site.rank for site in self.sites]), strict=True))

    def _apply(self) -> None:
        for site in self.sites:
            if site.name in self.kept:
                name = triplets_of(site.formula).diagonal
                diagonal = site.value(name)
                site.write(name, diagonal * self.kept[site.name].to(diagonal))

    def state_dict(self) -> dict[str, Tensor]:
        parts = {"importance": self.importance, "uncertainty": self.uncertainty, "kept": self.kept}
        return {f"{part}/{key}": tensor for part, held in parts.items() for key, tensor in held.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            getattr(self, part)[name] = tensor

    def report(self) -> dict[str, Any]:
        # Not counted in the diagonal: reading a sharded factor needs all processes, but only one asks for a report.
        everything = {site.name: torch.ones(site.rank) for site in self.sites}
        return {"ranks": {name: int(kept.sum()) for name, kept in (everything | self.kept).items()}}
