"""The public configurations of the paper's models, so that counting needs neither the hub nor weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "roberta-base": {
        **_ROBERTA,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "roberta-large": {
        **_ROBERTA,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "relative_attention": True,
        "max_relative_positions": -1,
        "position_buckets": 256,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 768,
    },
}
_OWNERS = {"roberta-base": "FacebookAI", "roberta-large": "FacebookAI", "deberta-v3-base": "microsoft"}


def public_configuration(name: str) -> PretrainedConfig | None:
    """Return a model's configuration by its hub name, with or without the owner; None if it is not one of these."""
    short = name.rpartition("/")[2]
    if short not in _CONFIGURATIONS or name not in (short, f"{_OWNERS[short]}/{short}"):
        return None
    given = dict(_CONFIGURATIONS[short])
    return AutoConfig.for_model(given.pop("model_type"), **given)
