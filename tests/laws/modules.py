"""One small network per layer kind: its module ``target`` is adapted, ``x`` is an input for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subspace_tuning.methods import Method

KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 9), lambda: torch.randn(2, 3, 6)),
    "linear_without_bias": (lambda: nn.Linear(9, 6, bias=False), lambda: torch.randn(4, 9)),
    "conv1d_of_transformers": (lambda: Conv1D(9, 6), lambda: torch.randn(2, 3, 6)),
    "embedding": (lambda: nn.Embedding(11, 6, padding_idx=0), lambda: torch.randint(0, 11, (2, 5))),
    "conv1d": (lambda: nn.Conv1d(3, 7, 3, padding=1), lambda: torch.randn(2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 6, 2, stride=2, padding_mode="circular"), lambda: torch.randn(2, 2, 6, 6)),
    "conv2d_in_groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), lambda: torch.randn(2, 4, 7, 7)),
    "conv2d_by_channel": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), lambda: torch.randn(2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2), lambda: torch.randn(1, 2, 3, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm(6), lambda: torch.randn(2, 3, 6)),
}


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.target = KINDS[kind][0]()
        if isinstance(bias := getattr(self.target, "bias", None), Tensor):
            nn.init.normal_(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.target(x)
        assert isinstance(y, Tensor)
        return y


def fits(case: Method, kind: str) -> bool:
    """Whether the tuner takes a method on a kind: the bias methods want a bias, and a norm has nothing else."""
    has_bias = isinstance(getattr(Net(kind).target, "bias", None), Tensor)
    if case.formula.wraps_norm:
        return kind == "layer_norm"
    bias_alone = case.name in ("bitfit", "s_bitfit")
    return has_bias if bias_alone else kind != "layer_norm"
