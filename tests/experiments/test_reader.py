"""The reader gives every tensor as transformers loads it: renamed, split, stacked or shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModel

from subspace_tuning.models.checkpoint import Checkpoint

from ..tuner.test_roles import CASES, TINY, Case
from .test_extract_architectures import build

OFTEN = ("roberta", "mixtral", "dinov2", "t5")
# q, k and v, or both sides of a gate, are one matrix in the files; older releases of transformers lack the types
SPLIT = [name for name in ("nomic_bert", "gte", "hrm_text") if name in CONFIG_MAPPING]


def check_read(model: Any, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    read = Checkpoint(str(folder))
    names = list(model.state_dict())
    assert [name for name in names if read.find(name) is None] == []
    for name, tensor in model.state_dict().items():
        assert read.shape(read.stored(name)) == tensor.shape, name
        torch.testing.assert_close(read.read(read.stored(name)), tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "case",
    [case if case.model_type in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_every_tensor_is_read(case: Case, tmp_path: Path) -> None:
    check_read(build(case.tiny_config()), tmp_path)


@pytest.mark.parametrize("model_type", SPLIT)
def test_every_part_of_a_split_tensor_is_read(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[model_type](**TINY))
    check_read(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert len(list(file.keys())) < len(model.state_dict())
