"""Gates that can close: the hard-concrete relaxation of a 0/1 mask (Louizos et al., arXiv 1712.01312)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Environment, Expression, dense
from .common import EntrywiseNode
from .language import Call, Typed, function

TEMPERATURE = 2.0 / 3.0
LOW, HIGH = -0.1, 1.1  # a sigmoid is stretched to this interval and clipped to [0, 1], so that gates can be 0 or 1
OPEN = 1.5  # logits at the start: nine tenths of the gates are open, and the gradient does not vanish


@dataclass(frozen=True, eq=False)
class Gate(EntrywiseNode):
    """``gate(L)``: entries in [0, 1], sampled around sigmoid(L) in training, their midpoint in evaluation."""

    node: Expression

    is_random = True
    drawn_start = f"constant({OPEN})"
    linear_in = ()
    zero_when = ()
    identity_when = (0,)

    def compact(self, env: Environment) -> Tensor:
        return _stretched(dense(self.node, env))

    def drawn(self) -> Expression:
        return Drawn(self.node.drawn())

    def __str__(self) -> str:
        return f"gate({self.node})"

    def latex(self) -> str:
        return rf"\operatorname{{gate}}({self.node.latex()})"


@dataclass(frozen=True, eq=False)
class Drawn(Gate):
    """Plans only: gates that are sampled in every pass, as in training."""

    def compact(self, env: Environment) -> Tensor:
        logits = dense(self.node, env)
        uniform = torch.rand_like(logits).clamp(1e-6, 1.0 - 1e-6)
        return _stretched((logits + torch.logit(uniform)) / TEMPERATURE)

    def __str__(self) -> str:
        return f"drawn({super().__str__()})"


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def gate(node: Expression) -> Gate:
    """Return the gates of a matrix of logits."""
    return Gate(node)


@function("gate")
def _read(call: Call) -> Typed:
    logits = call.sized_matrix(0)
    return Typed(gate(logits.node), logits.shape)


def expected_open(logits: Tensor) -> Tensor:
    """Return the expected number of gates that are not exactly 0: an L0 norm that a penalty can use."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH)).sum()
