"""Tied weights: those separated by a merge must stay separate when the model is saved and loaded."""

from __future__ import annotations

from typing import Any

from torch import nn


def separate(model: nn.Module) -> None:
    """Give every holder of a tied weight its own tensor if a merge has changed some of the holders.

    A saved file omits tensors that share storage, and omitted tensors are tied again, or reinitialised, on loading.
    """
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for source in dict.fromkeys(ties.values()):
        holders = [source, *(target for target, own in ties.items() if own == source)]
        if len({id(_holder(model, name)[0]._parameters[_holder(model, name)[1]]) for name in holders}) > 1:
            for target in holders[1:]:
                module, leaf = _holder(model, target)
                parameter = module._parameters[leaf]
                assert parameter is not None
                module._parameters[leaf] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                del ties[target]


def keep_scale(config: Any) -> None:
    """Set the flag for tying again for models that use it otherwise: T5 stops scaling its outputs without it.

    Loading compares the tensors of a file and keeps those untied that differ.
    """
    if config is not None and not getattr(config, "tie_word_embeddings", True):
        again = type(config).from_dict(config.to_dict())
        if again.to_dict() != config.to_dict():
            config.tie_word_embeddings = True


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf
