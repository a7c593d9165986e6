"""Computed targets are whole names: nothing else whose name ends alike is touched, here or where they are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceLayer, methods
from subspace_tuning.methods import EVERY_BIAS
from subspace_tuning.tuner.calibration import calibrate
from subspace_tuning.tuner.exact import exactly

PARTS = st.lists(st.sampled_from(["a", "b", "0", "1", "17", "a+b", "self_attn"]), min_size=1, max_size=4)


@given(st.sets(PARTS.map(".".join), min_size=1), st.data())
def test_the_expression_matches_these_names_and_no_others(every: set[str], data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(every)), min_size=1))
    for among in (every, ()):
        pattern = exactly(sorted(names), among)
        assert {name for name in every if re.fullmatch(pattern, name)} == names


def test_the_expression_is_short_where_every_block_is_meant() -> None:
    every = [f"h.{i}.{end}" for i in range(40) for end in ("fc", "mlp.0", "mlp.2")]
    names = [name for name in every if not name.endswith("2")]
    assert exactly(names, every) == r"(h\.\d+\.fc|h\.\d+\.mlp\.0)"
    assert exactly(["h.3.fc", "h.5.fc"], every) == r"(h\.3\.fc|h\.5\.fc)"


class Inner(nn.Module):
    """Modules called as those outside, which cannot be adapted or have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()
        self.fc = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.fc(x)))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x + self.block(x)))


def adapted(model: Any) -> set[str]:
    base = model.get_base_model()
    return {name for name, module in base.named_modules() if isinstance(module, SubspaceLayer)}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", [one.name for one in methods.every() if one.placement == EVERY_BIAS])
def test_the_biases_of_a_model_are_found_by_their_whole_names(name: str, nested: bool, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Outer(), nn.Identity()) if nested else Outer()

    x = torch.randn(4, 6)
    config = SubspaceConfig(method=name)
    if config.resolved.needs_calibration:
        config.budget = 1.0
        config = calibrate(
            build(), config, [{"x": x} if not nested else {"input": x}], lambda m, b: m(*b.values()).sum()
        )
    model: Any = get_peft_model(build(), config)
    prefix = "0." if nested else ""
    assert adapted(model) == {f"{prefix}norm", f"{prefix}fc"}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert adapted(loaded) == adapted(model)
    assert torch.equal(loaded(x), model(x))


def test_limits_to_some_layers_are_kept_as_whole_names(bert: Any, tmp_path: Path) -> None:
    for method in ("bitfit", "ssb"):
        model = get_peft_model(bert(), SubspaceConfig(method=method, layers_to_transform=[1]))
        found = adapted(model)
        assert found and all(".layer.1." in name for name in found)
        model.save_pretrained(tmp_path / method)
        read = PeftConfig.from_pretrained(tmp_path / method)
        assert isinstance(read.target_modules, str) and read.layers_to_transform is None
        assert adapted(PeftModel.from_pretrained(bert(), tmp_path / method)) == found
