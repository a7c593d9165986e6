"""DeepSpeed's ZeRO-3: a model whose weights each process holds a part of is adapted, trained and saved."""

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
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.tuner.budget import matrix_shape

PROGRAM = Path(__file__).with_name("zero3_training.py")


class Status(Enum):
    NOT_AVAILABLE = 1


def in_parts(weight: nn.Parameter) -> nn.Parameter:
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
    with pytest.raises(SubspaceError, match=r"^ZeRO-3 holds the weight in parts, so it cannot be merged into"):
        model.merge_adapter()


def run(program: list[str]) -> None:
    done = subprocess.run(program, env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
@pytest.mark.parametrize(
    "chosen",
    ["lora", "ssb", "dora", "svdiff", "pissa", "bitfit", "sam_parser", "adalora", "liera", "D1 @ W @ D2 + s * A @ B"],
)
def test_two_processes_train_as_one_does(chosen: str, base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run([sys.executable, str(PROGRAM), str(base), chosen, str(one)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([*torchrun, str(PROGRAM), str(base), chosen, str(two)])
    alone, parted = (json.loads((folder / "losses.json").read_text()) for folder in (one, two))
    assert parted["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert "ZeRO-3" in parted["refusal"]
    tokens = torch.randint(0, 64, (2, 8))
    outputs = [
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder / "adapter")(tokens).logits
        for folder in (one, two)
    ]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-3, rtol=1e-3)
