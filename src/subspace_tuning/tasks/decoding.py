"""Texts from a language model: what is asked of it, and one batch of prompts answered.

A module of the tasks, and itself none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .base import Values

IGNORED = -100
"""What stands in place of a label or of a token that is none, as in transformers."""


@dataclass(frozen=True)
class Decoding:
    """How texts are generated. What else a model's own generation config says, such as a repetition penalty, holds.

    Attributes:
        max_new_tokens: after so many tokens a text ends in any case.
        num_beams: how many texts are followed at a time, of which the most probable is taken; 1 for the most probable
            token each time.
        temperature: tokens are drawn with probabilities to the power of 1 / temperature; 0 draws none.
        top_p: drawn from the most probable tokens that together have this probability.
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
            "max_length": None,  # the model's own, which counts the prompt
            "num_beams": self.num_beams,
            "do_sample": drawn,
            "temperature": self.temperature if drawn else 1.0,
            "top_p": self.top_p,
            "top_k": 0 if drawn else 50,  # transformers' default, which means nothing where no token is drawn
        }


def left_padded(prompts: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """Return prompts of different lengths as a batch that ends with the last token of each.

    Args:
        prompts: token numbers, a vector each.
        pad: the token that fills up.

    Returns:
        ``input_ids`` and ``attention_mask``, prompts x tokens of the longest.
    """
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.stack([nn.functional.pad(prompt, (width - len(prompt), 0), value=pad) for prompt in prompts])
    mask = torch.stack([nn.functional.pad(torch.ones_like(one), (width - len(one), 0)) for one in prompts])
    return {"input_ids": tokens, "attention_mask": mask}


@torch.no_grad()
def generate(model: Any, batch: dict[str, Tensor], decoding: Decoding, *, decoder: bool) -> Tensor:
    """Return what a model answers to a batch of prompts.

    Args:
        model: a model with transformers' ``generate``, with or without an adapter.
        batch: ``input_ids`` and ``attention_mask``, padded on the left for a decoder.
        decoding: how.
        decoder: whether the model is a decoder alone, which gives the prompt again before its answer.

    Returns:
        Token numbers of the answers alone, prompts x tokens of the longest.
    """
    found: Tensor = model.generate(**batch, **decoding.settings)
    return found[:, batch["input_ids"].shape[1] :] if decoder else found


def texts_of(outputs: Values, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of token numbers, rows x tokens, without special tokens and without white space around them."""
    numbers = np.asarray(outputs).astype(np.int64)
    rows = [[int(token) for token in row if token >= 0] for row in numbers]
    found: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in found]
