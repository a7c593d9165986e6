"""Writes tiny random models in the place of those that peft's tests load from the hub: make_models.py FOLDER.

They are saved as FOLDER/organisation/name, so that in this folder ``from_pretrained("organisation/name")`` finds them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf

VOCABULARY = 256
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **SPECIAL,
}
BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
OPT = hf.OPTConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    word_embed_proj_dim=16,
    ffn_dim=4,
    num_hidden_layers=5,
    num_attention_heads=4,
    max_position_embeddings=128,
    **SPECIAL,
)
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 5,
    "n_head": 4,
    "n_positions": 128,
    **SPECIAL,
}
GEMMA3 = hf.Gemma3TextConfig(**LLAMA, head_dim=8, query_pre_attn_scalar=8)
T5 = hf.T5Config(
    vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=37, num_layers=5, num_heads=4, decoder_start_token_id=0
)
BART = hf.BartConfig(
    vocab_size=VOCABULARY,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=4,
    decoder_ffn_dim=4,
    max_position_embeddings=100,
)
DEBERTA = hf.DebertaConfig(**BERT, relative_attention=True, pos_att_type=["c2p", "p2c"])

PEFT, TRL = "peft-internal-testing", "trl-internal-testing"
MODELS: dict[str, tuple[type[hf.PreTrainedModel], hf.PreTrainedConfig]] = {
    f"{PEFT}/tiny-random-OPTForCausalLM": (hf.OPTForCausalLM, OPT),
    f"{PEFT}/tiny-random-GPT2LMHeadModel": (hf.GPT2LMHeadModel, hf.GPT2Config(**GPT)),
    f"{PEFT}/tiny-random-GPTJForCausalLM": (hf.GPTJForCausalLM, hf.GPTJConfig(**GPT, rotary_dim=4)),
    f"{TRL}/tiny-random-LlamaForCausalLM": (hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA)),
    f"{PEFT}/tiny-dummy-qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**{**LLAMA, "num_hidden_layers": 1})),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (hf.Gemma3ForCausalLM, GEMMA3),
    f"{PEFT}/tiny-random-T5ForConditionalGeneration-calibrated": (hf.T5ForConditionalGeneration, T5),
    f"{PEFT}/tiny-random-BartForConditionalGeneration": (hf.BartForConditionalGeneration, BART),
    f"{PEFT}/tiny-random-BertModel": (hf.BertModel, hf.BertConfig(**BERT)),
    f"{PEFT}/tiny-random-RobertaModel": (hf.RobertaModel, hf.RobertaConfig(**BERT)),
    f"{PEFT}/tiny-random-DebertaModel": (hf.DebertaModel, DEBERTA),
    f"{PEFT}/tiny-random-DebertaV2Model": (hf.DebertaV2Model, hf.DebertaV2Config(**BERT)),
    f"{PEFT}/tiny-random-BertForSequenceClassification": (hf.BertForSequenceClassification, hf.BertConfig(**BERT)),
    f"{PEFT}/tiny-random-RobertaForSequenceClassification": (
        hf.RobertaForSequenceClassification,
        hf.RobertaConfig(**BERT),
    ),
    f"{TRL}/tiny-LlamaForSequenceClassification-3.2": (hf.LlamaForSequenceClassification, hf.LlamaConfig(**LLAMA)),
}


def write(folder: Path) -> None:
    """Write all of them, or, if interrupted, none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        torch.manual_seed(0)
        for name, (model_class, config) in MODELS.items():
            model = model_class(config)
            for parameter in model.parameters():
                if parameter.dim() > 1:  # larger than the default, so that a changed weight shows in the logits
                    torch.nn.init.normal_(parameter, std=0.15)
            model.save_pretrained(Path(temporary, "models", name))
        peft.LoraConfig(base_model_name_or_path=f"{PEFT}/tiny-random-OPTForCausalLM").save_pretrained(
            Path(temporary, "models", PEFT, "tiny-opt-lora-revision")
        )
        Path(temporary, "models").rename(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
