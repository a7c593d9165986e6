r"""Where a method goes: the roles in a transformer block, and the modules that play them in each architecture.

A method's placement speaks of roles ("key", "value", "ffn_in"), peft of module names; the one table here translates.
A projection that an architecture fuses plays every role it contains: GPT-2's `attn.c_attn` is query, key and value.
The cross-attention of an encoder-decoder is attention like any other. Poolers and task heads play no role.

>>> print(target_modules("bert", ["key", "ffn_in"]))
(?:.*\.)?(?:attention\.self\.key|intermediate\.dense)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import SubspaceError, nearest
from ..methods.roles import CROSS_ATTENTION, FFN_NORM, ROLES

__all__ = ["ROLES", "known_model_types", "target_modules"]


_PLACES = (*ROLES, CROSS_ATTENTION, FFN_NORM)


def _names(
    attention: Sequence[str],
    *,
    ffn_in: str,
    ffn_out: str,
    ffn_gate: str | None = None,
    cross: str | None = None,
    norm: str | None = None,
) -> dict[str, str]:
    """How the module's name ends for each role: a regular expression with plain dots, `#` a layer's number.

    `attention` lists query, key, value and output; `cross` are all matrices of the attention to the encoder's states;
    `norm` is the normalisation that sees the feed-forward block's output plus its residual, where there is such a one.
    """
    names = zip(_PLACES, (*attention, ffn_in, ffn_gate, ffn_out, cross, norm), strict=True)
    return {role: name.replace(".", r"\.").replace("#", r"\d+") for role, name in names if name}


# Without the layer's number, BERT's `output.dense` would match its `attention.output.dense` too.
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
# Normalised before the block: mBART, OPT and Whisper, whose normalisations see no sum of a block and its residual.
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
# Vision transformers were renamed in transformers 5: each alternative below is one of the two spellings.
_VISION_ATTENTION = [
    "attention.(q_proj|attention.query)",
    "attention.(k_proj|attention.key)",
    "attention.(v_proj|attention.value)",
    "attention.(o_proj|output.dense)",
]

_ARCHITECTURES: dict[str, dict[str, str]] = {
    "albert": _names(
        ["attention.query", "attention.key", "attention.value", "attention.dense"],
        norm="albert_layers.#.full_layer_layer_norm",
        ffn_in="albert_layers.#.ffn",
        ffn_out="albert_layers.#.ffn_output",
    ),
    "bart": _BART,
    "bert": _BERT,
    "camembert": _BERT,
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "clip_vision_model": _CLIP,
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
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": _names(
        [*["attn.c_attn"] * 3, "attn.c_proj"],
        cross="crossattention.(c_attn|q_attn|c_proj)",
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
    ),
    "gpt_neox": _names(
        [*["attention.query_key_value"] * 3, "attention.dense"],
        ffn_in="mlp.dense_h_to_4h",
        ffn_out="mlp.dense_4h_to_h",
    ),
    "llama": _LLAMA,
    "mbart": _BART_BEFORE,
    "mistral": _LLAMA,
    "modernbert": _names([*["attn.Wqkv"] * 3, "attn.Wo"], ffn_in="mlp.Wi", ffn_gate="mlp.Wi", ffn_out="mlp.Wo"),
    "mpnet": _names(
        ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
        ffn_in="intermediate.dense",
        ffn_out="layer.#.output.dense",
        norm="layer.#.output.LayerNorm",
    ),
    "mt5": _T5,
    "opt": {role: names for role, names in _BART_BEFORE.items() if role != CROSS_ATTENTION},
    "phi3": _names(
        [*["self_attn.qkv_proj"] * 3, "self_attn.o_proj"],
        ffn_in="mlp.gate_up_proj",
        ffn_gate="mlp.gate_up_proj",
        ffn_out="mlp.down_proj",
    ),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "t5": _T5,
    "vit": _names(
        _VISION_ATTENTION,
        ffn_in="(mlp.fc1|intermediate.dense)",
        ffn_out="(mlp.fc2|layer.#.output.dense)",
    ),
    "whisper": _BART_BEFORE,
    "xlm-roberta": _BERT,
}


def known_model_types() -> tuple[str, ...]:
    """The values of `model.config.model_type` that the table has."""
    return tuple(_ARCHITECTURES)


def target_modules(model_type: str, roles: Iterable[str]) -> str:
    """The regular expression for peft's `target_modules` that matches the modules playing `roles`, and no others.

    A role that the architecture lacks is left out: BERT's feed-forward block has no gate.

    Args:
        model_type: a transformers model's `config.model_type`.
        roles: some of `ROLES`, in any order.

    Raises:
        SubspaceError: a `ValueError`, for an unknown model type or role, or if the architecture has none of the roles.
    """
    wanted = frozenset(roles)
    if unknown := sorted(wanted.difference(_PLACES)):
        raise SubspaceError(f"unknown role {unknown[0]!r}; {nearest(unknown[0], _PLACES)}. Or pass target_modules.")
    if model_type not in _ARCHITECTURES:
        known = nearest(model_type, _ARCHITECTURES)
        raise SubspaceError(f"no roles are known for model type {model_type!r}; {known}. Or pass target_modules.")
    names = _ARCHITECTURES[model_type]
    endings = dict.fromkeys(names[role] for role in _PLACES if role in wanted and role in names)
    if not endings:
        asked = ", ".join(role for role in _PLACES if role in wanted) or "no role"
        raise SubspaceError(f"asked for {asked}; {model_type!r} has only {', '.join(names)}. Or pass target_modules.")
    return rf"(?:.*\.)?(?:{'|'.join(endings)})"
