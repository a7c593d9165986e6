"""Small mixtures of experts, as transformers has them: all experts in one parameter, in both orientations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from subspace_tuning.methods import Method

from .registry import METHODS

TARGETS = ["experts.gate_up_proj", "experts.down_proj"]
SIZES = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "head_dim": 4}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
MIXTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**SIZES, **HEADS, num_local_experts=3),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, **HEADS, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True
    ),
    "gpt_oss": lambda: GptOssConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2),
}
FIT = tuple(
    case
    for case in METHODS
    if case.formula.is_linear
    and case.chooser is None
    and not case.formula.names_bias
    and not case.formula.wraps_norm
    and not case.formula.masked
)


def mixture(name: str, dtype: torch.dtype = torch.float64, experts: str = "eager") -> Any:
    """Return a model whose parameters are all drawn, since some start at zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MIXTURES[name](), experts_implementation=experts, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def tokens() -> Tensor:
    return torch.arange(16).view(2, 8) * 7 % 30


def options(case: Method) -> dict[str, Any]:
    """Return the fields of a config that makes a method."""
    named: dict[str, Any] = {"formula": case.name} if str(case.formula) == case.name else {"method": case.name}
    if case.schedule == "lora_dash":
        named["schedule"] = {"directions": 2, "launch": 1}
    return {**named, "r": 2, "alpha": 3.0}
