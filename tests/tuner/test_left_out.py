"""What is asked for and not adapted is named: experts in one parameter, listed names that match nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError


def mixtral() -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads))


EXPERTS = r"left out: model\.layers\.\*\.mlp\.experts\.gate_up_proj, model\.layers\.\*\.mlp\.experts\.down_proj, which"


@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("method", ["ssb", "lora"])
def test_stacked_experts_are_named(method: str, targets: str | None) -> None:
    with pytest.warns(UserWarning, match=EXPERTS):
        get_peft_model(mixtral(), SubspaceConfig(method=method, r=2, target_modules=targets))


def test_listed_names_that_match_nothing_are_named() -> None:
    config = SubspaceConfig(method="ssb", target_modules=["q_proj", "gate_proj", "up_proj"])
    with pytest.warns(UserWarning, match=EXPERTS), pytest.warns(UserWarning, match="gate_proj, up_proj match nothing"):
        get_peft_model(mixtral(), config)


def test_parameters_as_targets_are_refused_by_name() -> None:
    with pytest.raises(SubspaceError, match=r"target_parameters \['experts\.down_proj'\] cannot be adapted yet"):
        SubspaceConfig(method="lora", target_parameters=["experts.down_proj"])
