"""Decoders of a few thousand parameters with a tokenizer of single bytes, which writes any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = "{{ messages[-1].content }}{% if add_generation_prompt %}:{% endif %}"
"""A template that writes the last message alone."""

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
SIZE = len(SPECIAL) + 256
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES: dict[str, Any] = {
    "llama": {**_SHAPE, "intermediate_size": 48},
    "qwen2": {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024},
    "opt": {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "bert": {**_SHAPE, "intermediate_size": 48},
}


def tokenizer(template: str | None = CHATML) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of single bytes."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    found.chat_template = template
    return found


def decoder(kind: str = "llama") -> Any:
    """A model with random weights, large enough that what it sees makes a difference; in evaluation mode."""
    torch.manual_seed(0)
    shape = {"vocab_size": SIZE, "initializer_range": 0.2, "init_std": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, **shape, pad_token_id=0, **SHAPES[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def write_decoder(folder: Path, template: str | None = CHATML, kind: str = "llama") -> Path:
    """Write a model with its tokenizer to a folder."""
    decoder(kind).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder
