"""What a layer's forward pass costs where it computes little: the calls of Python and of C, which no clock blurs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.bench.device import operations
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
SHARE = {  # of the operations that peft's version begins in a training step
    "lora": 0.6,
    "dora": 0.6,
    "ssb": 0.6,  # of LoRA's
    "pissa": 0.8,
    "adalora": 0.7,
    "ia3": 1.0,
    "liera": 1.0,
    "lokr": 1.0,
    "hra": 0.4,
    "pafi": 1.0,
}
VIEWS = ("aten.view", "aten.t.", "aten.permute", "aten.detach", "aten.expand", "aten.transpose", "aten.unsqueeze")
CASES = [
    case
    for case in methods.every()
    if not (case.needs_calibration or case.formula.wraps_norm or case.formula.bias is not None)
]


def layer(config: PeftConfig, width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(width, width)), config)
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


def test_dora_decodes_as_lora_does() -> None:
    dora, lora = (decoding(layer(SubspaceConfig(method=name, **TARGET)).eval()) for name in ("dora", "lora"))
    assert dora <= lora + 2  # it scales the columns, and adds the bias after that


@pytest.mark.parametrize("name", SHARE)
def test_a_training_step_begins_fewer_operations_than_with_peft(name: str, one_thread: None) -> None:
    own = begun(layer(SubspaceConfig(method=name, **TARGET), 1024))
    theirs = begun(layer(PEFT.get(name, PEFT["lora"])(), 1024))
    assert own <= SHARE[name] * theirs


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With several threads narrow products are cut into chunks on a CPU, as they are nowhere else."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def begun(module: nn.Module) -> int:
    """Return how many operations a forward and a backward pass begin on rows for which the kernel pays."""
    x = torch.randn(2, 250, 1024, requires_grad=True)
    module.train()
    for _ in range(3):
        gradient = torch.ones_like(module(x))
    return len(operations(lambda: module(x).backward(gradient)))


def decoding(module: nn.Module) -> int:
    """Return how many operations a call without gradients begins, views left out."""
    with torch.no_grad():
        for _ in range(3):
            module(torch.ones(8, 64))
        names = operations(lambda: module(torch.ones(8, 64)))
    return sum(not name.startswith(VIEWS) for name in names)
