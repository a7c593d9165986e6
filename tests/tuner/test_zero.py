"""DeepSpeed's ZeRO: two processes, each of which holds a part of the optimiser or of the weights, train as one does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.tuner import loss
from subspace_tuning.tuner.budget import matrix_shape
from subspace_tuning.tuner.weights import agree

Fields = dict[str, Any]

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
PROGRAM = Path(__file__).with_name("zero_training.py")


class Status(Enum):
    NOT_AVAILABLE = 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.first(x))
        return y


def in_parts(weight: torch.Tensor) -> nn.Parameter:
    """Return a parameter as ZeRO-3 leaves it in a process: empty, with its shape beside it."""
    part = nn.Parameter(torch.empty(0), requires_grad=False)
    part.ds_status, part.ds_shape, part.ds_id = Status.NOT_AVAILABLE, weight.shape, 0  # type: ignore[attr-defined]
    return part


def test_shapes_come_from_the_whole_weight() -> None:
    linear = nn.Linear(6, 9)
    linear.weight = in_parts(linear.weight)
    assert matrix_shape(linear) == (6, 9)


def test_a_weight_in_parts_cannot_be_merged_into() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(6, 9)), SubspaceConfig(method="ssb", target_modules=["0"]))
    base: Any = model.base_model.model[0].base_layer  # type: ignore[index,union-attr]
    base.weight = in_parts(base.weight)
    with pytest.raises(SubspaceError, match=r"^ZeRO-3 has partitioned the weight, so it cannot be merged into"):
        model.merge_adapter()


def test_a_parameter_without_entries_is_refused_by_name() -> None:
    with pytest.raises(SubspaceError, match=r"^layer\.0: nothing is trained there, and ZeRO-3 needs parameters"):
        agree([torch.ones(2), torch.empty(0)], [], "layer.0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def test_factors_that_other_processes_step_are_no_cause_for_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty acts there, though no optimiser steps the factors here."""
    monkeypatch.setattr(loss, "PATIENCE", 1)
    config = SubspaceConfig(method="lora", r=2, target_modules=["first"], pattern="orthogonal", pattern_weight=0.5)
    model: Any = get_peft_model(Net(), config).train()
    head = model.get_base_model().head.requires_grad_()
    for name, parameter in model.named_parameters():
        if "subspace" in name:
            parameter._hp_mapping = None
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(4):
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()


def run(program: list[str]) -> str:
    done = subprocess.run(program, env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def train(base: Path, folder: Path, stage: int, config: Fields, **options: Any) -> tuple[Any, Any, str]:
    """Return what is reported of a run in one process and of one in two, and what the latter wrote to stderr."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [str(stage), json.dumps(config), json.dumps(options)]
    run([sys.executable, str(PROGRAM), str(base), str(folder / "one"), *given])
    written = run([*torchrun, str(PROGRAM), str(base), str(folder / "two"), *given])
    alone, parted = (json.loads((folder / name / "losses.json").read_text()) for name in ("one", "two"))
    return alone, parted, written


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    "chosen",
    ["lora", "ssb", "dora", "svdiff", "pissa", "bitfit", "sam_parser", "adalora", "liera", "D1 @ W @ D2 + s * A @ B"],
)
def test_weights_in_parts(chosen: str, base: Path, tmp_path: Path) -> None:
    named = {"formula": chosen} if "W" in chosen else {"method": chosen}
    where = ["q_proj", "v_proj"] if chosen == "bitfit" else ["q_proj", "v_proj", "down_proj"]
    alone, parted, _ = train(base, tmp_path, 3, {**named, "r": 4, "target_modules": where})
    assert parted["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert "ZeRO-3" in parted["refusal"]
    tokens = torch.randint(0, 64, (2, 8))
    outputs = [
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / run / "adapter")(tokens).logits
        for run in ("one", "two")
    ]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-3, rtol=1e-3)


EVERY_STEP = {"t_init": 1, "t_final": 2, "interval": 1}
ORTHOGONAL = {"method": "lora", "r": 4, "pattern": "orthogonal", "pattern_weight": 0.5}
CHOSEN = {  # with a share of every matrix
    "method": "fish_dip",
    "budget": 2000,
    "schedule": {"interval": 2, "t_final": 1},
    "target_modules": ["v_proj", "down_proj"],
}
ELSEWHERE = {"label_smoothing_factor": 0.1}
IN_STEPS: dict[str, tuple[Fields, Fields]] = {
    "adalora": ({"method": "adalora", "r": 4, "schedule": {**EVERY_STEP, "target_rank": 2}}, {}),
    "adalora, loss elsewhere": ({"method": "adalora", "r": 4, "schedule": {**EVERY_STEP, "target_rank": 2}}, ELSEWHERE),
    "flexlora": ({"method": "flexlora", "r": 4, "schedule": EVERY_STEP}, {}),
    "lora_dash": ({"method": "lora_dash", "r": 4, "schedule": {"launch": 2, "directions": 3}}, {}),
    "orthogonal, in the loss": (ORTHOGONAL, {}),
    "orthogonal, in the step": (ORTHOGONAL, ELSEWHERE),
    "orthogonal, accumulated": (ORTHOGONAL, {**ELSEWHERE, "gradient_accumulation_steps": 2}),
    "fish_dip": (CHOSEN, {}),
    "orthogonal, with a head": ({**ORTHOGONAL, "modules_to_save": ["lm_head"]}, {}),
    "gates": ({"method": "diff_pruning", "gate_weight": 0.01}, ELSEWHERE),
}


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("case", IN_STEPS)
@pytest.mark.parametrize("stage", [2, 3])
def test_optimiser_in_parts(stage: int, case: str, base: Path, tmp_path: Path) -> None:
    config, options = IN_STEPS[case]
    config = {"target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    # With AdamW's own epsilon, the direction of a step is that of rounding errors where a gradient is near zero.
    options = {"max_steps": 6, "adam_epsilon": 1e-3, **options}
    stage = 1 if (case, stage) == ("gates", 2) else stage
    alone, parted, written = train(base, tmp_path, stage, config, **options)
    assert "the penalty on the factors has not reached" not in written
    assert parted["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert parted["schedule"] == alone["schedule"]
    one, two = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
