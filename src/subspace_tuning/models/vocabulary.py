"""New tokens: texts that a tokenizer takes as one token from now on, and the rows of a model's embeddings for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SubspaceError
from .load import Processor

NEW_ROWS = ".trainable_tokens_delta."
"""Within the names of the parameters that peft makes for trained rows of embeddings."""


def add_tokens(model: PreTrainedModel, tokenizer: Processor, tokens: Sequence[str]) -> dict[str, list[int]]:
    """Add tokens to a tokenizer, and rows for them to a model, in place.

    Returns:
        The rows by the names of the modules that have them: the input embeddings, and the output layer if it does not
        share their weight.

    Raises:
        SubspaceError: the model has no tokenizer, a token is empty or already known, or the model cannot take it.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SubspaceError("adapter.new_tokens has no meaning for a model without a tokenizer: leave it out")
    known = tokenizer.get_vocab()
    for number, token in enumerate(tokens):
        if not token.strip():
            raise SubspaceError(f"adapter.new_tokens has {token!r}: write a text for each token")
        if token in known or token in tokens[:number]:
            where = "the vocabulary" if token in known else "the list"
            raise SubspaceError(f"adapter.new_tokens has {token!r}, which is already in {where}: leave it out")
    tokenizer.add_tokens(list(tokens))
    rows: Any = tokenizer.convert_tokens_to_ids(list(tokens))
    if {*rows} & {*known.values()}:
        raise SubspaceError(f"the model's tokenizer, a {type(tokenizer).__name__}, takes no new tokens")
    grow(model, max(rows) + 1)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    owners = [inputs]
    if outputs is not None:
        if getattr(outputs, "bias", None) is not None:  # peft's layer for trained rows leaves it out
            raise SubspaceError("adapter.new_tokens needs an output layer without a bias, and this model's has one")
        if outputs.weight is not inputs.weight:
            owners.append(outputs)
    return {name: list(rows) for name, module in model.named_modules() if any(module is one for one in owners)}


def grow(model: PreTrainedModel, rows: int) -> None:
    """Give the embeddings of a model at least ``rows`` rows; those that it has stay as they are.

    Raises:
        SubspaceError: the model has no embeddings that can grow.
    """
    try:
        held: Any = model.get_input_embeddings()
        if rows > len(held.weight):
            model.resize_token_embeddings(rows)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise SubspaceError(f"the embeddings of a {model.config.model_type} cannot take new tokens") from error
