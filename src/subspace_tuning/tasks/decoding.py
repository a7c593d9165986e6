"""Text generation with a language model: decoding options, and one batch of prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .rows import Values


@dataclass(frozen=True)
class Decoding:
    """How texts are generated. The model's own generation config decides the rest, such as a repetition penalty.

    Attributes:
        max_new_tokens: the most tokens of a text.
        num_beams: beams of a beam search; 1: none.
        temperature: the temperature at which tokens are sampled; 0: no sampling.
        top_p: sample from the most probable tokens with this total probability.
    """

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of transformers' ``generate``."""
        drawn = self.temperature > 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "max_length": None,  # the model's own, which would count the prompt
            "num_beams": self.num_beams,
            "do_sample": drawn,
            "temperature": self.temperature if drawn else 1.0,
            "top_p": self.top_p,
            "top_k": 0 if drawn else 50,  # 50 is transformers' default, and has no effect without sampling
        }


def left_padded(prompts: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """Return prompts of different lengths as a batch padded on the left.

    Args:
        prompts: token numbers, a vector each.
        pad: the pad token.

    Returns:
        ``input_ids`` and ``attention_mask``, prompts x tokens of the longest.
    """
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.stack([nn.functional.pad(prompt, (width - len(prompt), 0), value=pad) for prompt in prompts])
    mask = torch.stack([nn.functional.pad(torch.ones_like(one), (width - len(one), 0)) for one in prompts])
    return {"input_ids": tokens, "attention_mask": mask}


@torch.no_grad()
def generate(model: Any, batch: dict[str, Tensor], decoding: Decoding, *, decoder: bool) -> Tensor:
    """Return the tokens that a model generates for a batch of prompts.

    Args:
        model: a model with transformers' ``generate``, with or without an adapter.
        batch: ``input_ids`` and ``attention_mask``, padded on the left for a decoder.
        decoding: the decoding options.
        decoder: whether the model is decoder-only; such a model returns the prompt before its text.

    Returns:
        The new tokens alone, prompts x tokens of the longest.
    """
    found: Tensor = model.generate(**batch, **decoding.settings)
    return found[:, batch["input_ids"].shape[1] :] if decoder else found


def texts_of(outputs: Values, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the decoded texts of tokens, rows x tokens, without special tokens and surrounding white space."""
    numbers = np.asarray(outputs).astype(np.int64)
    rows = [[int(token) for token in row if token >= 0] for row in numbers]
    found: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in found]


def until_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return tokens up to the first that ends a text."""
    return list(tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))])
