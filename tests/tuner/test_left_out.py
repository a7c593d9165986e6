"""What is asked for and not adapted is named: experts in one parameter, listed names that match nothing."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.counting.count import count_in
from subspace_tuning.tuner.sizing import sized
from subspace_tuning.tuner.walking import layers_of


def mixtral() -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads))


EXPERTS = r"left out: model\.layers\.\*\.mlp\.experts\.gate_up_proj, model\.layers\.\*\.mlp\.experts\.down_proj, "


@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("method", ["ssb", "lora"])
def test_stacked_experts_are_named(method: str, targets: str | None) -> None:
    with pytest.warns(UserWarning, match=EXPERTS):
        get_peft_model(mixtral(), SubspaceConfig(method=method, r=2, target_modules=targets))


def test_listed_names_that_match_nothing_are_named() -> None:
    config = SubspaceConfig(method="ssb", target_modules=["q_proj", "gate_proj", "up_proj"])
    with pytest.warns(UserWarning, match=EXPERTS), pytest.warns(UserWarning, match="gate_proj, up_proj match nothing"):
        get_peft_model(mixtral(), config)


def test_what_is_left_out_is_adapted_as_the_warning_says() -> None:
    named = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    with pytest.warns(UserWarning, match=re.escape(f"to adapt them give target_parameters={named}")):
        get_peft_model(mixtral(), SubspaceConfig(method="lora", target_modules="all-linear"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = SubspaceConfig(method="lora", r=2, target_modules="all-linear", target_parameters=named)
        model = get_peft_model(mixtral(), config)
    adapted = {name.partition(".subspace_")[0] for name, _ in model.named_parameters() if ".subspace_" in name}
    held = {name.removesuffix(".weight") for name, p in mixtral().named_parameters() if p.dim() > 1}
    outside = {"lm_head", "model.embed_tokens"}  # all-linear leaves out a model's ends
    assert {name.removeprefix("base_model.model.").removesuffix(".weight") for name in adapted} == held - outside


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_proj.weight", r"^target_parameters: model\.layers\.0\.self_attn\.q_proj\.weight is a tensor of a Linear; "),
        ("input_layernorm.weight", r"has 1 dimensions; a matrix has 2, a stack of experts 3$"),
        ("experts.nothing", r"^Target modules \['experts\.nothing'\] not found in the base model"),
    ],
)
def test_what_no_parameter_allows(target: str, message: str) -> None:
    with pytest.raises(SubspaceError, match=message):
        get_peft_model(mixtral(), SubspaceConfig(method="lora", target_parameters=[target]))


def test_dropout_and_mixed_batches_are_refused() -> None:
    targets = ["experts.down_proj"]
    with pytest.raises(SubspaceError, match=r"^dropout acts on rows, and .*down_proj is a parameter"):
        get_peft_model(mixtral(), SubspaceConfig(method="lora", dropout=0.1, target_parameters=targets))
    model = get_peft_model(mixtral(), SubspaceConfig(method="lora", target_parameters=targets)).eval()
    with pytest.raises(SubspaceError, match=r"^adapter_names gives every row its own adapter, and .* is a parameter"):
        model(torch.zeros(2, 3, dtype=torch.long), adapter_names=["default", "__base__"])


def test_layers_and_exclusions_limit_parameters() -> None:
    def adapted(**options: Any) -> set[str]:
        config = SubspaceConfig(method="ssb", target_parameters=["gate_up_proj", "down_proj"], **options)
        return {name for name, _ in layers_of(get_peft_model(mixtral(), config))}

    path = "base_model.model.model.layers.{}.mlp.experts.{}".format
    assert adapted() == {path(i, name) for i in (0, 1) for name in ("gate_up_proj", "down_proj")}
    assert adapted(layers_to_transform=[1]) == {path(1, name) for name in ("gate_up_proj", "down_proj")}
    left = {path(0, "gate_up_proj"), path(1, "gate_up_proj"), path(1, "down_proj")}
    assert adapted(exclude_modules=["0.mlp.experts.down_proj"]) == left


def test_orientation_and_ranks_are_said() -> None:
    """A square stack could be read either way: which one is the model type's, its flag's, or the config's to say."""
    config = SubspaceConfig(
        method="lora",
        r=2,
        target_parameters=["gate_up_proj", "down_proj"],
        transposed_parameters=["down_proj"],
        rank_pattern={"down_proj": 1},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # as peft's of patterns that match no module
        layers = [layer for _, layer in layers_of(get_peft_model(mixtral(), config))][:2]
    sizes = [(layer.in_features, layer.out_features, layer.r["default"]) for layer in layers]
    assert sizes == [(8, 24, 2), (8, 12, 1)]


def test_counts_without_weights() -> None:
    config = SubspaceConfig(method="lora", r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    counted = count_in(mixtral().config, config)
    assert counted.matrices == 2 * 2 * 2  # layers, experts, matrices of each
    assert counted.trainable == 2 * 2 * 2 * (8 + 24 + 12 + 8)
    assert sized(mixtral(), config, 3 * counted.trainable).r == 6
