"""What a layer's forward pass costs where it computes little: the calls of Python and of C, which no clock blurs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    HiraConfig,
    HRAConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    ShiraConfig,
    get_peft_model,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.methods import Method

from .registry import method_id

TARGET: dict[str, Any] = {"target_modules": ["0"]}
PEFT: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(**TARGET),
    "dora": lambda: LoraConfig(use_dora=True, **TARGET),
    "pissa": lambda: LoraConfig(init_lora_weights="pissa_niter_4", **TARGET),
    "adalora": lambda: AdaLoraConfig(total_step=100, **TARGET),
    "ia3": lambda: IA3Config(feedforward_modules=[], **TARGET),
    "liera": lambda: HiraConfig(**TARGET),
    "lokr": lambda: LoKrConfig(**TARGET),
    "hra": lambda: HRAConfig(**TARGET),
    "pafi": lambda: ShiraConfig(**TARGET),
}
MORE = {  # at most so many calls in training and in evaluation
    "pafi": (41, 46),  # checks that what it keeps is up to date
    "spectral": (75, 54),  # forms a matrix from five factors
    "lora_dash": (60, 54),  # adds two products
    "houlsby": (60, 75),  # puts a bottleneck with biases behind the layer
}
CASES = [
    case
    for case in methods.every()
    if not (case.needs_calibration or case.formula.wraps_norm or case.formula.bias is not None)
]


def layer(config: PeftConfig) -> nn.Module:
    torch.manual_seed(0)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(64, 64)), config)
    return model.base_model.model[0]  # type: ignore[no-any-return]


def calls(module: nn.Module, training: bool) -> int:
    """Return the calls of a forward pass, of Python's and of C's functions."""
    count, x = 0, torch.randn(4, 8, 64, requires_grad=True)

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    module.train(training)
    with torch.set_grad_enabled(training):
        for _ in range(3):
            module(x)
        sys.setprofile(note)
        try:
            module(x)
        finally:
            sys.setprofile(None)
    return count - 1  # the last is of setprofile itself


@pytest.mark.parametrize("case", CASES, ids=method_id)
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_makes_no_more_calls_than_with_peft(case: Method, training: bool) -> None:
    own = calls(layer(SubspaceConfig(method=case.name, **TARGET)), training)
    theirs = calls(layer(PEFT.get(case.name, PEFT["lora"])()), training)
    assert own <= MORE.get(case.name, (theirs, theirs))[not training]


@pytest.mark.parametrize("name", ["lokr", "hra"])
def test_a_step_begins_no_more_operations_than_with_peft(name: str) -> None:
    counts = []
    for config in (
        SubspaceConfig(method=name, r=4, **TARGET),
        {"lokr": LoKrConfig, "hra": HRAConfig}[name](r=4, **TARGET),
    ):
        model: Any = get_peft_model(nn.Sequential(nn.Linear(96, 96)), config)
        with Begun() as begun:
            model(torch.ones(32, 96)).sum().backward()
        counts.append(len(begun.names))
    assert 5 < counts[0] <= counts[1]


class Begun(TorchDispatchMode):
    """Notes the operations that torch begins, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_dora_decodes_as_lora_does() -> None:
    dora, lora = (operations(layer(SubspaceConfig(method=name, **TARGET)).eval()) for name in ("dora", "lora"))
    assert len(dora) <= len(lora) + 1  # it scales the columns, too


def operations(module: nn.Module) -> list[str]:
    """Return what torch begins in a call without gradients."""
    with torch.no_grad():
        for _ in range(3):
            module(torch.ones(8, 64))
        with Begun() as begun:
            module(torch.ones(8, 64))
    return begun.names
