"""Counting trainable parameters without weights: the model is built on the meta device from its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import transformers
from peft import get_peft_model
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import SubspaceError
from ..tuner import SubspaceConfig, SubspaceLayer
from .model import cannot_load, head_modules, locate


@dataclass(frozen=True)
class Count:
    """What one method trains in one model: the head is left out of ``trainable`` and is part of ``total``."""

    method: str
    rank: int | None
    matrices: int
    trainable: int
    total: int

    @property
    def per_mille(self) -> float:
        """Return the trainable parameters in thousandths of all."""
        return 1000 * self.trainable / self.total


def count(name: str, configs: Iterable[SubspaceConfig]) -> Iterator[Count]:
    """Count for each config in turn what it trains.

    Args:
        name: a hub name, a local folder or ``minilm``. Only its configuration is read.
        configs: the adapters; each meets a fresh model.

    Raises:
        SubspaceError: the model's configuration cannot be read, or an adapter does not fit the model.
    """
    source = locate(name)
    try:
        architecture = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise SubspaceError(cannot_load(name, source, error)) from error
    for config in configs:
        model = _empty(architecture)
        total = sum(parameter.numel() for parameter in model.parameters())
        config.modules_to_save = head_modules(model)
        adapted = get_peft_model(model, config)
        layers = [module for module in adapted.modules() if isinstance(module, SubspaceLayer)]
        trainable = sum(parameter.numel() for layer in layers for parameter in layer.subspace_params.parameters())
        method = config.resolved
        yield Count(method.name, config.r if method.formula.has_rank else None, len(layers), trainable, total)


def _empty(architecture: PretrainedConfig) -> PreTrainedModel:
    """Return the model without weights: with a two-label head where there is such a class."""
    with torch.device("meta"):
        try:
            architecture.num_labels = 2
            model = transformers.AutoModelForSequenceClassification.from_config(architecture)  # type: ignore[no-untyped-call]
        except ValueError:
            model = transformers.AutoModel.from_config(architecture)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model
