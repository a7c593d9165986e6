"""The table of architectures: the names of the modules for each role, by the model type of transformers."""

from __future__ import annotations

from collections.abc import Sequence

from ..methods.roles import CROSS_ATTENTION, FFN_NORM, ROLES

PLACES = (*ROLES, CROSS_ATTENTION, FFN_NORM)


def _names(
    attention: Sequence[str | None],
    *,
    ffn_in: str | None = None,
    ffn_out: str | None = None,
    ffn_gate: str | None = None,
    cross: str | None = None,
    norm: str | None = None,
) -> dict[str, str]:
    """Return the end of the module names for each role: a regular expression with plain dots, `#` a layer number.

    `attention` lists query, key, value and output; `cross` are all matrices of the cross-attention; `norm` is the
    normalisation of the feed-forward block's output plus its residual, if there is one.
    """
    names = zip(PLACES, (*attention, ffn_in, ffn_gate, ffn_out, cross, norm), strict=True)
    return {role: name.replace(".", r"\.").replace("#", r"\d+") for role, name in names if name}


# Without the layer number, BERT's `output.dense` would also match its `attention.output.dense`.
_BERT = _names(
    ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
    cross="crossattention.(self.query|self.key|self.value|output.dense)",
    ffn_in="intermediate.dense",
    ffn_out="layer.#.output.dense",
    norm="layer.#.output.LayerNorm",
)
_LLAMA = _names(
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    ffn_in="mlp.up_proj",
    ffn_gate="mlp.gate_proj",
    ffn_out="mlp.down_proj",
)
_T5 = _names(
    [f"(SelfAttention|EncDecAttention).{end}" for end in ("q", "k", "v", "o")],
    cross="EncDecAttention.(q|k|v|o)",
    ffn_in="DenseReluDense.(wi|wi_1)",
    ffn_gate="DenseReluDense.wi_0",
    ffn_out="DenseReluDense.wo",
)
# Normalised before the block: in mBART, OPT and Whisper no normalisation follows the sum of a block and its residual.
_BART_BEFORE = _names(
    [f"(self_attn|encoder_attn).{end}" for end in ("q_proj", "k_proj", "v_proj", "out_proj")],
    cross="encoder_attn.(q_proj|k_proj|v_proj|out_proj)",
    ffn_in="layers.#.fc1",
    ffn_out="layers.#.fc2",
)
_BART = _BART_BEFORE | {FFN_NORM: r"layers\.\d+\.final_layer_norm"}
_CLIP = _names(
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
    ffn_in="mlp.fc1",
    ffn_out="mlp.fc2",
)
# Experts that are separate modules have roles; matrices stacked into one parameter have none.
_MOE = _names(
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    ffn_in="mlp.(shared_expert.|experts.#.)?up_proj",
    ffn_gate="mlp.(shared_expert.|experts.#.)?gate_proj",
    ffn_out="mlp.(shared_expert.|experts.#.)?down_proj",
)
_FALCON = _names(
    [*["self_attention.query_key_value"] * 3, "self_attention.dense"],
    ffn_in="mlp.dense_h_to_4h",
    ffn_out="mlp.dense_4h_to_h",
)
_QWEN3_5 = _names(
    [
        "(self_attn.q_proj|linear_attn.in_proj_qkv)",
        "(self_attn.k_proj|linear_attn.in_proj_qkv)",
        "(self_attn.v_proj|linear_attn.in_proj_qkv)",
        "(self_attn.o_proj|linear_attn.out_proj)",
    ],
    ffn_in="mlp.up_proj",
    ffn_gate="mlp.gate_proj",
    ffn_out="mlp.down_proj",
)
_LLAMA4 = _names(
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    ffn_in="feed_forward.(shared_expert.)?up_proj",
    ffn_gate="feed_forward.(shared_expert.)?gate_proj",
    ffn_out="feed_forward.(shared_expert.)?down_proj",
)
# The kernels of a state-space mixer read every weight but this one without calling its module.
_MAMBA = _names([None, None, "mixer.in_proj", None], ffn_in="mixer.in_proj", ffn_gate="mixer.in_proj")
# Vision transformers were renamed in transformers 5: each alternative below is one of the two spellings.
_VISION_ATTENTION = [
    "attention.(q_proj|attention.query)",
    "attention.(k_proj|attention.key)",
    "attention.(v_proj|attention.value)",
    "attention.(o_proj|output.dense)",
]


def _inside(tower: str, *architectures: dict[str, str]) -> dict[str, str]:
    """Return the roles within one tower of a model that has several, for any of the given architectures."""
    roles = [role for role in PLACES if any(role in names for names in architectures)]
    ends = {role: "|".join(dict.fromkeys(names[role] for names in architectures if role in names)) for role in roles}
    return {role: rf"{tower}\.(.*\.)?({end})" for role, end in ends.items()}


_OPT = {role: names for role, names in _BART_BEFORE.items() if role != CROSS_ATTENTION}

TRANSPOSED_EXPERTS = frozenset({"llama4", "llama4_text"})
"""Model types whose stacked experts are in x out although no ``is_transposed`` of their module says so."""

ARCHITECTURES: dict[str, dict[str, str]] = {
    "albert": _names(
        ["attention.query", "attention.key", "attention.value", "attention.dense"],
        norm="albert_layers.#.full_layer_layer_norm",
        ffn_in="albert_layers.#.ffn",
        ffn_out="albert_layers.#.ffn_output",
    ),
    "bart": _BART,
    "bert": _BERT,
    "blip-2": _inside("language_model", _OPT, _T5),
    "bloom": _FALCON,
    "btlm": _names(
        [*["attn.c_attn"] * 3, "attn.c_proj"], ffn_in="mlp.c_fc", ffn_gate="mlp.c_fc2", ffn_out="mlp.c_proj"
    ),
    "camembert": _BERT,
    "chatglm": _names(
        [*["(self_attention|attention).query_key_value"] * 3, "(self_attention|attention).dense"],
        ffn_in="mlp.dense_h_to_4h",
        ffn_gate="mlp.dense_h_to_4h",
        ffn_out="mlp.dense_4h_to_h",
    ),
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "clip_vision_model": _CLIP,
    "codegen": _names(
        [*["attn.qkv_proj"] * 3, "attn.out_proj"],
        ffn_in="mlp.fc_in",
        ffn_out="mlp.fc_out",
    ),
    "deberta": _names(
        [*["attention.self.in_proj"] * 3, "attention.output.dense"],
        ffn_in="intermediate.dense",
        ffn_out="layer.#.output.dense",
    ),
    "deberta-v2": _names(
        [*(f"attention.self.{end}_proj" for end in ("query", "key", "value")), "attention.output.dense"],
        ffn_in="intermediate.dense",
        ffn_out="layer.#.output.dense",
        norm="layer.#.output.LayerNorm",
    ),
    "dinov2": _names(
        _VISION_ATTENTION,
        ffn_in="mlp.(fc1|up_proj|weights_in)",
        ffn_gate="mlp.(gate_proj|weights_in)",
        ffn_out="mlp.(fc2|down_proj|weights_out)",
    ),
    "distilbert": _names(
        ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
        norm="layer.#.output_layer_norm",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
    ),
    "electra": _BERT,
    "falcon": _FALCON,
    "falcon_mamba": _MAMBA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": _inside("language_model", _LLAMA),
    "gemma3_text": _LLAMA,
    "gemma4": _inside("language_model", _LLAMA),
    "gemma4_text": _LLAMA,
    "gpt2": _names(
        [*["attn.c_attn"] * 3, "attn.c_proj"],
        cross="crossattention.(c_attn|q_attn|c_proj)",
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
    ),
    "gpt_bigcode": _names([*["attn.c_attn"] * 3, "attn.c_proj"], ffn_in="mlp.c_fc", ffn_out="mlp.c_proj"),
    "gpt_neo": _names(
        ["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj", "attn.attention.out_proj"],
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
    ),
    "gpt_neox": _names(
        [*["attention.query_key_value"] * 3, "attention.dense"],
        ffn_in="mlp.dense_h_to_4h",
        ffn_out="mlp.dense_4h_to_h",
    ),
    "gpt_oss": {role: names for role, names in _LLAMA.items() if not role.startswith("ffn")},
    "gptj": _names(
        ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"],
        ffn_in="mlp.fc_in",
        ffn_out="mlp.fc_out",
    ),
    "layoutlm": _BERT,
    "llama": _LLAMA,
    "llama4": _inside("language_model", _LLAMA4),
    "llama4_text": _LLAMA4,
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "mbart": _BART_BEFORE,
    "mistral": _LLAMA,
    "mixtral": _names(
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ffn_in="block_sparse_moe.experts.#.w3",
        ffn_gate="block_sparse_moe.experts.#.w1",
        ffn_out="block_sparse_moe.experts.#.w2",
    ),
    "modernbert": _names([*["attn.Wqkv"] * 3, "attn.Wo"], ffn_in="mlp.Wi", ffn_gate="mlp.Wi", ffn_out="mlp.Wo"),
    "mpnet": _names(
        ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
        ffn_in="intermediate.dense",
        ffn_out="layer.#.output.dense",
        norm="layer.#.output.LayerNorm",
    ),
    "mpt": _names([*["attn.Wqkv"] * 3, "attn.out_proj"], ffn_in="ffn.up_proj", ffn_out="ffn.down_proj"),
    "mt5": _T5,
    "nemotron_h": _names(
        ["mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj"],
        ffn_in="mixer.(shared_experts.|experts.#.)?up_proj",
        ffn_out="mixer.(shared_experts.|experts.#.)?down_proj",
    ),
    "opt": _OPT,
    "phi": _names(
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"],
        ffn_in="mlp.fc1",
        ffn_out="mlp.fc2",
    ),
    "phi3": _names(
        [*["self_attn.qkv_proj"] * 3, "self_attn.o_proj"],
        ffn_in="mlp.gate_up_proj",
        ffn_gate="mlp.gate_up_proj",
        ffn_out="mlp.down_proj",
    ),
    "qwen2": _LLAMA,
    "qwen2_moe": _MOE,
    "qwen3": _LLAMA,
    "qwen3_5": _inside("language_model", _QWEN3_5),
    "qwen3_5_text": _QWEN3_5,
    "qwen3_moe": _MOE,
    "RefinedWeb": _FALCON,
    "RefinedWebModel": _FALCON,
    "roberta": _BERT,
    "rwkv": _names(
        ["attention.receptance", "attention.key", "attention.value", "attention.output"],
        ffn_in="feed_forward.key",
        ffn_gate="feed_forward.receptance",
        ffn_out="feed_forward.value",
    ),
    "rwkv7": _names(
        ["attn.r_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"], ffn_in="ffn.key", ffn_out="ffn.value"
    ),
    "stablelm": _LLAMA,
    "t5": _T5,
    "vit": _names(
        _VISION_ATTENTION,
        ffn_in="(mlp.fc1|intermediate.dense)",
        ffn_out="(mlp.fc2|layer.#.output.dense)",
    ),
    "whisper": _BART_BEFORE,
    "xlm-roberta": _BERT,
}
