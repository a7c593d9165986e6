"""The probability of texts after a prompt, under a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Tokens = Sequence[int]


def answer_losses(model: nn.Module, tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return of each row the sum of its labels' negative log-probabilities, and their number (rows x 2).

    Args:
        model: a decoder.
        tokens: the rows, padded on the right (rows x tokens).
        mask: 1 for tokens and 0 for padding (rows x tokens).
        labels: the tokens that count, -100 elsewhere.
    """
    logits = model(input_ids=tokens, attention_mask=mask).logits
    logits = logits[:, logits.shape[1] - tokens.shape[1] :]  # what prompt learning puts in front has no labels
    counted = labels[:, 1:] != -100
    losses = nn.functional.cross_entropy(logits[:, :-1][counted].float(), labels[:, 1:][counted], reduction="none")
    sums = torch.zeros(counted.shape, device=losses.device).masked_scatter(counted, losses)
    return torch.stack([sums.double().sum(1), counted.double().sum(1)], dim=1)


def choice_scores(model: Any, prompts: Sequence[Tokens], choices: Sequence[Sequence[Tokens]], together: bool) -> Tensor:
    """Return the log-probability of every choice after its prompt (rows x choices).

    A choice must include the token that ends it; otherwise "answer1" could never be less probable than "answer10".

    Args:
        model: a decoder.
        prompts: tokens of each row.
        choices: for each row the tokens of its choices; one without tokens is absent and scores minus infinity.
        together: whether all choices of a row share one forward pass, in which each attends to the prompt and itself;
            ``shares_prompts`` checks whether a model can do that.
    """
    scored = _together if together else _apart
    found = scored(model, prompts, choices)
    width = max(len(row) for row in choices)
    empty = torch.tensor([[not one for one in _filled(row, width)] for row in choices], device=found.device)
    return found.masked_fill(empty, -math.inf)


def shares_prompts(model: nn.Module) -> bool:
    """Return whether ``choice_scores`` gives the same for choices together and apart, in evaluation mode.

    It does not if the model ignores positions or the attention mask, or adds learned prompts of its own.
    """
    prompts, choices = [[3, 4, 5, 6, 7], [6, 5]], [[[4, 3], [4, 3, 5], [6]], [[3], [5, 6, 7, 4]]]
    with torch.no_grad():
        apart = choice_scores(model, prompts, choices, together=False)
        try:
            found = choice_scores(model, prompts, choices, together=True)
        except (TypeError, ValueError, RuntimeError, IndexError):  # the model knows no such mask
            return False
    return torch.allclose(found, apart, rtol=1e-3, atol=1e-3)


def _filled(row: Sequence[Tokens], width: int) -> list[Tokens]:
    return [*row, *([()] * (width - len(row)))]


def _apart(model: Any, prompts: Sequence[Tokens], choices: Sequence[Sequence[Tokens]]) -> Tensor:
    width = max(len(row) for row in choices)
    texts = [(prompt, one) for prompt, row in zip(prompts, choices, strict=True) for one in _filled(row, width)]
    longest = max(len(prompt) + len(one) for prompt, one in texts)
    tokens, labels = torch.zeros(len(texts), longest, dtype=torch.long), torch.full((len(texts), longest), -100)
    mask = torch.zeros_like(tokens)
    for row, (prompt, one) in enumerate(texts):
        end = len(prompt) + len(one)
        tokens[row, :end] = torch.tensor([*prompt, *one])
        labels[row, len(prompt) : end] = torch.tensor(one)
        mask[row, :end] = 1
    device = next(model.parameters()).device
    losses = answer_losses(model, tokens.to(device), mask.to(device), labels.to(device))
    return -losses[:, 0].view(len(prompts), width)


def _together(model: Any, prompts: Sequence[Tokens], choices: Sequence[Sequence[Tokens]]) -> Tensor:
    lengths = [len(prompt) + sum(map(len, row)) for prompt, row in zip(prompts, choices, strict=True)]
    shape = (len(prompts), max(lengths))
    # Of each token: itself, its place in the text, the choice it belongs to (0: the prompt, -1: none of either), and
    # where the token stands that comes before it.
    tokens, places, owners, before = (torch.full(shape, value) for value in (0, 0, -1, 0))
    for row, (prompt, options) in enumerate(zip(prompts, choices, strict=True)):
        start = len(prompt)
        tokens[row, :start], places[row, :start], owners[row, :start] = torch.tensor(prompt), torch.arange(start), 0
        for number, one in enumerate(options, start=1):
            end = start + len(one)
            tokens[row, start:end], owners[row, start:end] = torch.tensor(one), number
            places[row, start:end] = torch.arange(len(prompt), len(prompt) + len(one))
            before[row, start:end] = torch.tensor([len(prompt) - 1, *range(start, end - 1)][: len(one)])
            start = end
    device = next(model.parameters()).device
    tokens, places, owners, before = (one.to(device) for one in (tokens, places, owners, before))
    logits = model(input_ids=tokens, position_ids=places, attention_mask=_sees(places, owners)).logits
    found = logits.gather(1, before[..., None].expand(-1, -1, logits.shape[-1])).float().log_softmax(-1)
    found = found.gather(2, tokens[..., None])[..., 0].double()
    width = max(len(row) for row in choices)
    return torch.stack([found.masked_fill(owners != number, 0).sum(1) for number in range(1, width + 1)], dim=1)


def _sees(places: Tensor, owners: Tensor) -> Tensor:
    """Return what is added to the attention of each token to each (rows x 1 x tokens x tokens)."""
    own = owners[:, :, None] == owners[:, None, :]
    shared = (owners[:, None, :] == 0) & (owners[:, :, None] > 0)
    seen = (own | shared) & (places[:, None, :] <= places[:, :, None])
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
