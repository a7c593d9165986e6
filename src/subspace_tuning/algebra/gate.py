"""Gates that can close: the hard-concrete relaxation of a 0/1 mask (Louizos et al., arXiv 1712.01312)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import rows as R
from .nodes import EVALUATION, MODE, Environment, Expression, Mode, dense
from .rows import Rows

TEMPERATURE = 2.0 / 3.0
LOW, HIGH = -0.1, 1.1  # a sigmoid is stretched to this interval and cut to [0, 1], so that 0 and 1 have mass


@dataclass(frozen=True)
class Gate(Expression):
    """``gate(L)``: entries in [0, 1], drawn in training around sigmoid(L), and in evaluation their middle."""

    node: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.node,)

    def apply(self, x: Rows, env: Environment) -> Rows:
        return R.matmul(x, self.compact(env))

    def compact(self, env: Environment) -> Tensor:
        logits = dense(self.node, env)
        mode = env.get(MODE, EVALUATION)
        assert isinstance(mode, Mode)
        if mode.training:
            uniform = torch.rand_like(logits).clamp(1e-6, 1.0 - 1e-6)
            logits = (logits + torch.logit(uniform)) / TEMPERATURE
        return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)

    def __str__(self) -> str:
        return f"gate({self.node})"


def gate(node: Expression) -> Gate:
    """Return the gates of a matrix of logits."""
    return Gate(node)


def expected_open(logits: Tensor) -> Tensor:
    """Return the expected number of gates that are not exactly 0, which is the L0 norm that a penalty can act on."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH)).sum()
