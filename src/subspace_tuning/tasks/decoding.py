"""Text generation in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def generate_batches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, up to the first token that ends it.

    Prompts are sorted by length, the longest first, so that running out of memory shows at once.

    Args:
        model: a decoder; the tokens that end a text are in its ``generation_config``.
        tokenizer: the model's tokenizer, with a padding token.
        prompts: the tokens of each prompt.
        max_new_tokens: the most tokens of a continuation.
        batch_size: prompts per batch.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        written = _continued(model, tokenizer, [prompts[row] for row in rows], max_new_tokens)
        for row, tokens in zip(rows, written, strict=True):
            found[row] = tokens
    return found


def _continued(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    padded = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(padded)
    for row, tokens in enumerate(prompts):  # from the left, since a continuation follows the last token
        padded[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    ends = set(end_tokens(model))
    written: Tensor = model.generate(
        input_ids=padded.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [_until(tokens, ends) for tokens in written[:, longest:].tolist()]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def end_tokens(model: Any) -> list[int]:
    """Return the tokens that end a text, as the model's ``generation_config`` has them."""
    given = model.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)
