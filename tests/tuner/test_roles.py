"""Every role matches the modules that play it, in every architecture of the table, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from subspace_tuning.tuner.roles import ROLES, known_model_types, target_modules

HIDDEN, INTERMEDIATE, LAYERS, HEADS = 8, 32, 2, 2
# The same few numbers, under every name that one config or another gives them.
TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "d_ff"), INTERMEDIATE),
    **dict.fromkeys(("ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), INTERMEDIATE),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_kv"), HIDDEN // HEADS),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    "decoder_start_token_id": 1,
    "vocab_size": 40,
    "image_size": 32,
    "patch_size": 16,
}
TOWER = {key: TINY[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}


@dataclass(frozen=True)
class Case:
    """An architecture: what its config needs beyond `TINY`, and how many modules play each role."""

    model_type: str
    attentions: int = LAYERS
    ffns: int = LAYERS
    gated: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join((self.model_type, *self.config))

    @property
    def roles(self) -> list[str]:
        return [role for role in ROLES if self.gated or role != "ffn_gate"]

    def tiny_config(self) -> PretrainedConfig:
        config_class = CONFIG_MAPPING[self.model_type]
        defaults = config_class()
        known = {key: value for key, value in TINY.items() if hasattr(defaults, key)}
        config: PretrainedConfig = config_class(**known | dict(self.config))
        return config


def encoder_decoder(model_type: str, gated: bool = False, **config: Any) -> Case:
    # The decoder attends both to itself and to the encoder.
    return Case(model_type, attentions=3 * LAYERS, ffns=2 * LAYERS, gated=gated, config=config)


RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CASES = [
    Case("albert", attentions=1, ffns=1),  # all layers share their weights
    encoder_decoder("bart"),
    Case("bert"),
    Case("camembert"),
    Case("clip", 2 * LAYERS, 2 * LAYERS, config={"text_config": TOWER, "vision_config": TOWER}),
    Case("clip_text_model"),
    Case("clip_vision_model"),
    Case("deberta"),
    Case("deberta", config=RELATIVE),
    Case("deberta-v2"),
    Case("deberta-v2", config=RELATIVE | {"share_att_key": False}),
    Case("dinov2"),
    Case("dinov2", gated=True, config={"use_swiglu_ffn": True, "mlp_ratio": 6}),  # SwiGLU takes 2/3 of 6 * 8
    Case("distilbert"),
    Case("electra"),
    Case("gemma", gated=True),
    Case("gemma2", gated=True),
    Case("gemma3_text", gated=True),
    Case("gpt2"),
    Case("gpt_neox"),
    Case("llama", gated=True),
    encoder_decoder("mbart"),
    Case("mistral", gated=True),
    Case("modernbert", gated=True),
    Case("mpnet"),
    encoder_decoder("mt5", gated=True),
    Case("opt"),
    Case("phi3", gated=True),
    Case("qwen2", gated=True),
    Case("qwen3", gated=True),
    Case("roberta"),
    encoder_decoder("t5"),
    encoder_decoder("t5", gated=True, feed_forward_proj="gated-gelu"),
    Case("vit"),
    encoder_decoder("whisper"),
    Case("xlm-roberta"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def matched(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules that peft would adapt: a string in `target_modules` must match the whole name."""
    return {name: module for name, module in model.named_modules() if re.fullmatch(pattern, name)}


def in_out(module: nn.Module) -> tuple[int, int]:
    """The shape of a linear map as in x out, which is how Conv1D stores its weight and nn.Linear does not."""
    assert isinstance(module, nn.Linear | Conv1D)
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def test_every_architecture_has_a_case() -> None:
    assert {case.model_type for case in CASES} == set(known_model_types())


@every_case
def test_a_role_matches_exactly_the_modules_that_play_it(case: Case) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(case.tiny_config())
    attention_in = {(HIDDEN, HIDDEN), (HIDDEN, 3 * HIDDEN)}  # alone, or query, key and value fused
    ffn_in = {(HIDDEN, INTERMEDIATE), (HIDDEN, 2 * INTERMEDIATE)}  # alone, or fused with the gate
    shapes = {
        **dict.fromkeys(("query", "key", "value"), attention_in),
        "attention_output": {(HIDDEN, HIDDEN)},
        **dict.fromkeys(("ffn_in", "ffn_gate"), ffn_in),
        "ffn_out": {(INTERMEDIATE, HIDDEN)},
    }
    modules = {role: matched(model, target_modules(case.model_type, [role])) for role in case.roles}
    for role in case.roles:
        assert len(modules[role]) == (case.ffns if role.startswith("ffn") else case.attentions), (role, modules[role])
        assert {in_out(module) for module in modules[role].values()} <= shapes[role], role
    for one, other in combinations(modules.values(), 2):
        assert one.keys() == other.keys() or one.keys().isdisjoint(other)
    assert matched(model, target_modules(case.model_type, ROLES)).keys() == set().union(*modules.values())


@every_case
def test_a_task_head_is_never_matched(case: Case) -> None:
    config = case.tiny_config()
    for mapping in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING):
        if type(config) in mapping:
            with torch.device("meta"):
                model = mapping[type(config)](config)
            pattern = target_modules(case.model_type, ROLES)
            assert len(matched(model, pattern)) == len(matched(model.base_model, pattern))


def test_roles_come_out_in_the_order_of_the_table() -> None:
    assert target_modules("bert", ["value", "key"]) == target_modules("bert", {"key": 1, "value": 2})


def test_fused_roles_are_one_ending() -> None:
    assert target_modules("gpt2", ["query", "key", "value"]) == target_modules("gpt2", ["query"])


def test_a_missing_role_is_skipped() -> None:
    assert target_modules("bert", ["ffn_in", "ffn_gate"]) == target_modules("bert", ["ffn_in"])


@pytest.mark.parametrize(
    ("model_type", "roles", "message"),
    [
        ("robert", ["key"], "no roles are known for model type 'robert'; did you mean roberta.*pass target_modules"),
        ("bert", ["keys"], "unknown role 'keys'; did you mean key.*pass target_modules"),
        ("bert", ["ffn_gate"], "asked for ffn_gate; 'bert' has only query, .*pass target_modules"),
        ("bert", [], "asked for no role; 'bert' has only query, .*pass target_modules"),
    ],
)
def test_what_cannot_be_placed_is_told_in_one_line(model_type: str, roles: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        target_modules(model_type, roles)
    assert "\n" not in str(error.value)
