"""A pretrained model with its tokenizer or image processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SubspaceError
from ..tuner.unpacked import keep_unpacked
from .heads import ending, head_modules
from .locate import cannot_load, locate
from .meta import takes_images

logger = logging.getLogger(__name__)

Processor: TypeAlias = Any
"""What makes a model's inputs: a tokenizer, or an image processor."""


def load(
    name: str, model_class: Any, settings: Mapping[str, Any], max_length: int
) -> tuple[PreTrainedModel, Processor]:
    """Return a pretrained model in float32 and its tokenizer, or its image processor if its inputs are pixels.

    Parameters missing from the checkpoint, such as a task's head, are drawn from torch's generator.

    Args:
        name: a hub name, a local folder or ``minilm``.
        model_class: a class of transformers with ``from_pretrained``.
        settings: further arguments of ``from_pretrained``, such as ``num_labels`` and ``quantization_config``.
        max_length: the length of the inputs, in tokens; images have none.

    Raises:
        SubspaceError: the model cannot be found or loaded, lacks weights, holds NaN, has fewer positions than
            `max_length`, has neither a pad nor an eos token, or takes no images in colour.
    """
    source = locate(name)
    try:
        model: PreTrainedModel
        model, found = model_class.from_pretrained(
            source,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head made for another task is replaced by a fresh one
            output_loading_info=True,
            **settings,
        )
        processor = processor_of(model, source)
    except Exception as error:  # damaged files can raise anything in the library
        raise SubspaceError(cannot_load(name, source, error)) from error
    keep_unpacked(model)
    _check_whole(name, model, [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    for parameter_name, parameter in model.named_parameters():
        plain = type(parameter.data) is torch.Tensor  # torchao's tensors do not support it
        if plain and not torch.isfinite(parameter).all():
            raise SubspaceError(f"model {name!r} holds NaN or infinity in {parameter_name}")
    if takes_images(model):
        channels = getattr(model.config, "num_channels", 3)
        if channels != 3:
            raise SubspaceError(f"model {name!r} takes images of {channels} channels, and images are read in 3: RGB")
        return model, processor
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise SubspaceError(f"task.max_length is {max_length}, but model {name!r} has {positions} positions")
    _set_ends(name, model, processor)
    return model, processor


def _check_whole(name: str, model: PreTrainedModel, drawn: Sequence[str]) -> None:
    """Raise SubspaceError if weights outside the head are drawn: transformers replaces what a checkpoint lacks."""
    heads = tuple(f"{one}." for one in ending(model, head_modules(model)))
    if lost := sorted(key for key in drawn if not key.startswith(heads)):
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise SubspaceError(
            f"the checkpoint of model {name!r} has no {lost[0]} of the model's shape{more}: it is of another model, "
            "damaged, or packed in a format that transformers does not know"
        )


def _set_ends(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the tokenizer's pad and eos tokens; without a pad token, the eos token takes its place."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SubspaceError(f"the tokenizer of model {name!r} has neither a pad token nor an eos token")
        logger.warning("the tokenizer of model %r has no pad token: %s is used instead", name, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        generation.pad_token_id = tokenizer.pad_token_id
        generation.eos_token_id = list(dict.fromkeys([*own, *end_tokens(model)])) or None


def processor_of(model: PreTrainedModel, source: str) -> Processor:
    """Return the tokenizer in a folder or on the hub, or the image processor if the model's inputs are pixels."""
    auto: Any = transformers.AutoImageProcessor if takes_images(model) else transformers.AutoTokenizer
    return auto.from_pretrained(source)


def end_tokens(model: Any) -> list[int]:
    """Return the tokens that end a text, from the model's ``generation_config``."""
    given = model.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)
