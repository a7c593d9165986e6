"""A config is what its fields say, whenever and however they are set."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig, SubspaceError, methods


@pytest.mark.parametrize("name", [known.name for known in methods.every()])
def test_replaced_and_read_back(name: str, tmp_path: Path) -> None:
    config = SubspaceConfig(method="lora")
    for changed in (dataclasses.replace(config, method=name), SubspaceConfig(**{**config.to_dict(), "method": name})):
        assert changed.resolved.formula == methods.get(name).formula
    assert (
        SubspaceConfig(**changed.to_dict()) == changed == copy.deepcopy(changed) == pickle.loads(pickle.dumps(changed))
    )
    changed.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["formula"] == str(methods.get(name).formula)
    loaded = SubspaceConfig.from_pretrained(str(tmp_path))
    assert dataclasses.replace(loaded, method="lora").resolved == config.resolved


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"method": "lora"}, {"method": "ssb"}),
        ({"method": "lora"}, {"pattern": "nonlinear", "nonlinearity": "gelu"}),
        ({"formula": "W + s * A @ B"}, {"formula": "D1 @ W"}),
        ({"formula": "W + s * A @ B"}, {"starts": {"A": "normal(0.1)"}, "r": 3}),
        ({"method": "adalora"}, {"r": 2, "alpha": 4.0}),
    ],
)
def test_an_assigned_field_counts(given: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    config = SubspaceConfig(**given, target_modules=["0"])
    _ = config.resolved
    for name, value in changes.items():
        setattr(config, name, value)
    made = SubspaceConfig(**given | changes, target_modules=["0"])
    assert config.resolved == made.resolved
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(12, 10)), torch.randn(3, 12)
    state = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(str(tmp_path))
    again = nn.Sequential(nn.Linear(12, 10))
    again.load_state_dict(state)
    assert torch.equal(PeftModel.from_pretrained(again, str(tmp_path)).eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 0),
        ("method", "LoRA"),
        ("method", 3),
        ("formula", "D1 @ W"),
        ("pattern", "x"),
        ("alpha", -1.0),
        ("dropout", 2),
    ],
)
def test_a_wrong_value_is_refused_and_not_taken(name: str, value: object) -> None:
    config = SubspaceConfig(method="lora")
    before = getattr(config, name)
    with pytest.raises(SubspaceError) as caught:
        setattr(config, name, value)
    assert "\n" not in str(caught.value)
    assert getattr(config, name) == before
