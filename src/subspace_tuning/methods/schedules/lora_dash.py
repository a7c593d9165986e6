"""LoRA-Dash's launch: after some steps of LoRA, each singular direction that it changes most gets a trained value.

The change rate of direction i of W = U S V.T is |u_i^T dW v_i| / (S_i + eps) with dW = s A B, in *absolute* value
(arXiv 2409.01035, definition 4). dW is the sum of the formula's low-rank terms, ignoring nonlinearities. The q
directions with the largest rate are then stored in the constants U_k and V_k and saved with the adapter; until then
both are zero, so that d cannot move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...algebra import Formula, dense
from ...algebra.low_rank import LowRank
from ...algebra.names import CHOSEN_SHAPES
from ...documented import documented
from ...linalg import svd
from .base import Context, Options, Schedule, Site, option, steps

EPSILON = 1e-6


@documented
@dataclass(frozen=True)
class LoRADashOptions(Options):
    """LoRA-Dash's settings."""

    launch: int | None = option(None, "the step after which the directions are chosen; None: 0.1 of the run")
    directions: int = option(8, "the number of directions chosen in each matrix (q)")


class LoRADash(Schedule):
    options_class = LoRADashOptions

    @classmethod
    def lacking(cls, formula: Formula) -> str | None:
        chooses = CHOSEN_SHAPES.keys() <= set(formula.expression.names)
        if chooses and any(term.is_free for term in formula.low_rank):
            return None
        return "a low-rank term and chosen directions, such as A @ B and U_k @ diag(d) @ V_k.T"

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert isinstance(options, LoRADashOptions)
        self.launch = max(1, steps(options.launch, 0.1, self.total))
        self._need(self.launch + 1, "LoRA-Dash's launch, with a step after it")
        self.chosen: dict[str, Tensor] = {}

    @torch.no_grad()
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        if step == self.launch:
            for site in self.sites:
                self.chosen[site.name] = _choose(site)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.chosen)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.chosen = dict(state)

    def report(self) -> dict[str, Any]:
        return {"launch": self.launch, "directions": {name: index.tolist() for name, index in self.chosen.items()}}


def change_rates(site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Return the change rate of every singular direction of W, and U and V."""
    U, S, V = svd(site.weight)
    along = [_along(term, site, U, V) for term in site.formula.low_rank if term.is_free]
    rates = site.scale * torch.stack(along).sum(0).abs() / (S + EPSILON)
    return rates, U, V


def _along(term: LowRank, site: Site, U: Tensor, V: Tensor) -> Tensor:
    """Return what a low-rank term does along every pair of singular directions."""
    parts = [term.down, *(node for node in term.core if not node.is_shapeless), term.up]
    # In one order everywhere: reading a sharded factor is a call of all processes.
    trained, names = site.parameters, dict.fromkeys(name for part in parts for name in part.names)
    values = {name: site.value(name) if name in trained else site.constants[name] for name in names}
    down, *core, up = (dense(part, values) for part in parts)
    left = U.T @ down.to(U)
    for matrix in core:
        left = left @ matrix.to(U)
    return (left * (up.to(V) @ V).T).sum(1)


def _choose(site: Site) -> Tensor:
    rates, U, V = change_rates(site)
    index = rates.topk(site.constants["U_k"].shape[1]).indices
    site.constants["U_k"].copy_(U[:, index])
    site.constants["V_k"].copy_(V[:, index])
    return index
