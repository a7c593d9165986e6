"""Language models of some thousand parameters, whose tokens are whole words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ..tasks.own_files import WORDS

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"


def write_tokenizer(folder: Path, template: str, **special: str) -> int:
    """Write a tokenizer of words, whose template puts special tokens around a text, and return how many it knows."""
    vocabulary = {word: number for number, word in enumerate([PAD, UNKNOWN, BEGIN, END, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(mark, vocabulary[mark]) for mark in (BEGIN, END) if mark in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, **special)
    made.save_pretrained(folder)
    return len(vocabulary)


def t5(folder: Path) -> Path:
    """Write an encoder-decoder."""
    size = write_tokenizer(folder, f"$A {END}", pad_token=PAD, eos_token=END)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=size,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
        initializer_factor=5.0,  # so that it writes more than one word before it has learnt to
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def llama(folder: Path, special: Mapping[str, str] = MappingProxyType({"pad_token": PAD, "eos_token": END})) -> Path:
    """Write a decoder, whose tokenizer has these special tokens."""
    size = write_tokenizer(folder, f"{BEGIN} $A", bos_token=BEGIN, **special)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.5,
        eos_token_id=1,  # not the tokenizer's
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


MODELS: Mapping[str, Callable[[Path], Path]] = MappingProxyType({"t5": t5, "llama": llama})
"""What writes a model that generates, by its name."""
