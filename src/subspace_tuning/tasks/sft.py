"""The parts of TRL in use: its trainer, its packing, and its chat templates with marked answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..extras import needs
from .base import Training

_PART = "a task of a language model"


def check_installed() -> None:
    """Raise MissingExtraError if TRL is not installed."""
    needs(_PART, "language", "trl")


@cache
def training() -> Training:
    """Return the SFTTrainer, to which rows come as tokens, packed and checked."""
    needs(_PART, "language", "trl")
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]  # TRL's classes have no types
        """The SFTTrainer without telemetry, and without a lower precision for adapters on quantised weights."""

        def __init__(self, *, model: nn.Module, **kwargs: Any) -> None:
            trained = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
            super().__init__(model=model, **kwargs)
            for parameter, data in trained:
                parameter.data = data.to(parameter.device)

        def _send_telemetry(self) -> None:
            pass

    settings = {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "gradient_checkpointing": False,  # the run switches it on itself
    }
    return Training(Trainer, SFTConfig, settings, counts_labels=True)


def packed(encoded: Dataset, max_length: int) -> Dataset:
    """Return rows of ``max_length`` tokens at most, each of one or more of the given ones, by best fit."""
    needs(_PART, "language", "trl")
    from trl import pack_dataset

    found: Dataset = pack_dataset(encoded, max_length, "bfd")
    return found


def marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the tokenizer's chat template with marks around the answers, None if TRL does not know the template."""
    needs(_PART, "language", "trl")
    from trl import get_training_chat_template

    try:
        found: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return found
