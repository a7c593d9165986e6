"""Every role matches the modules that play it, in every architecture of the table, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from subspace_tuning import SubspaceConfig
from subspace_tuning.methods.roles import FFN_NORM
from subspace_tuning.tuner.architectures import ARCHITECTURES
from subspace_tuning.tuner.recognise import recognise
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
    alone: bool = False  # the config takes nothing of `TINY`
    roles_of: tuple[str, ...] = ()  # where an architecture has no more than these
    fused: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # shapes of roles that are not everyone's

    def __str__(self) -> str:
        return "-".join((self.model_type, *self.config))

    @property
    def roles(self) -> list[str]:
        return [role for role in self.roles_of or ROLES if self.gated or role != "ffn_gate"]

    def tiny_config(self) -> PretrainedConfig:
        config_class = CONFIG_MAPPING[self.model_type]
        if self.alone:
            return config_class(**self.config)
        defaults = config_class()
        known = {key: value for key, value in TINY.items() if hasattr(defaults, key)}
        config: PretrainedConfig = config_class(**known | dict(self.config))
        return config


def encoder_decoder(model_type: str, gated: bool = False, **config: Any) -> Case:
    # The decoder attends both to itself and to the encoder.
    return Case(model_type, attentions=3 * LAYERS, ffns=2 * LAYERS, gated=gated, config=config)


ATTENTION, MIXER = ROLES[:4], ("value", "ffn_in", "ffn_gate")
MIXED, MIXED2 = dict.fromkeys(MIXER, (HIDDEN, 32)), dict.fromkeys(MIXER, (HIDDEN, 292))
GATED = TOWER | {"num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS}
GEMMA4 = {key: value for key, value in GATED.items() if key != "head_dim"} | {
    "head_dim": 4,
    "global_head_dim": 4,
    "hidden_size_per_layer_input": 0,
}
OPT = {"model_type": "opt", **TOWER, "ffn_dim": INTERMEDIATE, "word_embed_proj_dim": HIDDEN}
FALCON = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
EXPERTS = {"num_experts": 2, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}
QWEN3_5 = {"layer_types": ["full_attention", "full_attention"]}
GATED_Q = {"query": (HIDDEN, 2 * HIDDEN)}  # the query and the gate of the attention's output
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
    Case("blip-2", config={"text_config": OPT, "vision_config": TOWER, "qformer_config": TOWER}),
    Case("bloom"),
    Case("codegen"),
    Case("falcon", alone=True, config=FALCON, fused=dict.fromkeys(("query", "key", "value"), (HIDDEN, 2 * HIDDEN))),
    Case("falcon_mamba", roles_of=MIXER, gated=True, config={"intermediate_size": 16}, fused=MIXED),
    Case("gemma3", gated=True, config={"text_config": GATED, "vision_config": TOWER}),
    Case("gemma4", gated=True, alone=True, config={"text_config": GEMMA4, "vision_config": TOWER}),
    Case("gemma4_text", gated=True, alone=True, config=GEMMA4),
    Case("gpt_bigcode", fused=dict.fromkeys(("query", "key", "value"), (HIDDEN, 2 * HIDDEN))),
    Case("gpt_neo", config={"attention_types": [[["global", "local"], 1]]}),
    Case("gpt_oss", roles_of=ATTENTION, config={"num_local_experts": 2}),
    Case("gptj"),
    Case("layoutlm"),
    Case("llama4", gated=True, config={"text_config": GATED | {"num_local_experts": 2}, "vision_config": TOWER}),
    Case("llama4_text", gated=True, config={"num_local_experts": 2}),
    Case("mamba", roles_of=MIXER, gated=True, config={"intermediate_size": 16}, fused=MIXED),
    Case("mamba2", roles_of=MIXER, gated=True, config={"num_heads": 4, "head_dim": 4, "n_groups": 1}, fused=MIXED2),
    Case("mixtral", roles_of=ATTENTION),
    Case("mpt"),
    Case("nemotron_h", attentions=1, ffns=1, config={"layers_block_type": ["attention", "mlp"]}),
    Case("phi"),
    Case("qwen2_moe", gated=True, config=EXPERTS | {"shared_expert_intermediate_size": INTERMEDIATE}),
    Case("qwen2_moe", gated=True, config=EXPERTS | {"mlp_only_layers": [0, 1]}),
    Case("qwen3_5", gated=True, config={"text_config": GATED | QWEN3_5, "vision_config": {"depth": 1}}, fused=GATED_Q),
    Case("qwen3_5_text", gated=True, config=QWEN3_5, fused=GATED_Q),
    Case("qwen3_moe", roles_of=ATTENTION, config={"num_experts": 2, "moe_intermediate_size": 4}),
    Case("rwkv", gated=True, config={"attention_hidden_size": HIDDEN}, fused={"ffn_gate": (HIDDEN, HIDDEN)}),
    Case("stablelm", gated=True),
]
# Types whose code is not in transformers: the names of one block, by role.
REMOTE = {
    "btlm": {"query": "transformer.h.0.attn.c_attn", "ffn_gate": "transformer.h.0.mlp.c_fc2"},
    "chatglm": {
        "key": "transformer.encoder.layers.0.self_attention.query_key_value",
        "ffn_in": "transformer.encoder.layers.0.mlp.dense_h_to_4h",
    },
    "RefinedWeb": {"value": "transformer.h.0.self_attention.query_key_value"},
    "RefinedWebModel": {"ffn_out": "transformer.h.0.mlp.dense_4h_to_h"},
    "rwkv7": {
        "query": "model.layers.0.attn.r_proj",
        "key": "model.layers.0.attn.k_proj",
        "ffn_in": "model.layers.0.ffn.key",
    },
}
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
    assert {case.model_type for case in CASES} | set(REMOTE) == set(known_model_types())
    assert set(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) <= set(known_model_types())


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
        expected = {case.fused[role]} if role in case.fused else shapes[role]
        assert {in_out(module) for module in modules[role].values()} <= expected, role
    for one, other in combinations(modules.values(), 2):
        assert one.keys() == other.keys() or one.keys().isdisjoint(other)
    assert matched(model, target_modules(case.model_type, ROLES)).keys() == set().union(*modules.values())


@every_case
def test_names_and_shapes_alone_tell_the_same_roles(case: Case) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(case.tiny_config())
    inferred = recognise(model.named_modules())
    for role in set(ARCHITECTURES[case.model_type]) - {FFN_NORM}:
        told = matched(model, target_modules(case.model_type, [role]))
        assert set(inferred.get(role, ())) == told.keys(), role


@pytest.mark.parametrize("model_type", REMOTE)
def test_types_whose_code_is_elsewhere(model_type: str) -> None:
    for role, name in REMOTE[model_type].items():
        assert re.fullmatch(target_modules(model_type, [role]), name)


class Block(nn.Module):
    """Attention and a feed-forward network under the names of many a hand-written model."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
        self.ffn = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.router = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(8)


def test_an_unknown_model_is_warned_of_with_what_was_inferred() -> None:
    net = nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(3)), "head": nn.Linear(8, 8)})
    config = SubspaceConfig(method="ssb")
    told = (
        "^a model without a type: inferred from names and shapes are key "
        r"blocks.\*.attn.qkv; value blocks.\*.attn.qkv; ffn_in blocks.\*.ffn.0. Pass target_modules to choose others$"
    )
    with pytest.warns(UserWarning, match=told):
        get_peft_model(net, config)
    assert config.target_modules == r"(blocks\.\d+\.attn\.qkv|blocks\.\d+\.ffn\.0)"


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
