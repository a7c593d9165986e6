"""A pretrained model with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SubspaceError
from .locate import cannot_load, locate


def load(
    name: str, model_class: Any, settings: Mapping[str, Any], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a pretrained model in float32 and its tokenizer.

    Parameters missing from the checkpoint, such as a task's head, are drawn from torch's generator.

    Args:
        name: a hub name, a local folder or ``minilm``.
        model_class: a class of transformers with ``from_pretrained``.
        settings: further arguments of ``from_pretrained``, such as ``num_labels`` and ``quantization_config``.
        max_length: the length of the inputs, in tokens.

    Raises:
        SubspaceError: the model cannot be found or loaded, holds NaN, or has fewer positions than `max_length`.
    """
    source = locate(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model: PreTrainedModel = model_class.from_pretrained(
            source,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head made for another task is replaced by a fresh one
            **settings,
        )
    except Exception as error:  # damaged files can raise anything in the library
        raise SubspaceError(cannot_load(name, source, error)) from error
    for parameter_name, parameter in model.named_parameters():
        plain = type(parameter.data) is torch.Tensor  # torchao's tensors do not support it
        if plain and not torch.isfinite(parameter).all():
            raise SubspaceError(f"model {name!r} holds NaN or infinity in {parameter_name}")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise SubspaceError(f"task.max_length is {max_length}, but model {name!r} has {positions} positions")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
