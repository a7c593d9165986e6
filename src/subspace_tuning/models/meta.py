"""Models without weights: their configurations, and the modules on the meta device."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import SubspaceError, reading
from .locate import cannot_load, locate
from .reference_configs import public_configuration


def architecture_of(name: str) -> PretrainedConfig:
    """Return a model's configuration.

    Args:
        name: a hub name, a local folder or ``minilm``. The paper's models are known without the hub.

    Raises:
        SubspaceError: the configuration cannot be read.
    """
    source = locate(name)
    known = public_configuration(name) if source == name else None
    if known is not None:
        return known
    try:
        read: PretrainedConfig = transformers.AutoConfig.from_pretrained(source)
    except Exception as error:  # a damaged configuration can raise anything in the library
        raise SubspaceError(cannot_load(name, source, error)) from error
    return read


def without_weights(architecture: PretrainedConfig) -> PreTrainedModel:
    """Return the model without weights, with a head of two labels for texts or images if there is such a class."""
    architecture = copy.deepcopy(architecture)
    architecture.num_labels = 2
    with reading(f"the configuration of a {architecture.model_type}"), torch.device("meta"):
        try:
            model = transformers.AutoModelForSequenceClassification.from_config(architecture)  # type: ignore[no-untyped-call]
        except ValueError:
            model = transformers.AutoModel.from_config(architecture)  # type: ignore[no-untyped-call]
            if takes_images(model):
                with suppress(ValueError):
                    model = transformers.AutoModelForImageClassification.from_config(architecture)  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def takes_images(model: PreTrainedModel) -> bool:
    """Return whether a model's inputs are pixels."""
    return model.main_input_name == "pixel_values"
