"""Configurations that train as nearly as can be the same number of parameters in one model."""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from ..theory.budget import read_budget, uniform_rank
from ..tuner import SubspaceConfig
from .count import adapt, without_weights


def budget_in(architecture: PretrainedConfig, budget: str) -> int:
    """Return a budget such as "300k" or "0.3permille" as a number of a model's parameters."""
    return read_budget(budget, sum(parameter.numel() for parameter in without_weights(architecture).parameters()))


def matched(architecture: PretrainedConfig, config: SubspaceConfig, budget: int) -> SubspaceConfig:
    """Return the configuration with the rank, or the number of entries, that comes nearest to a budget.

    A method without either comes back as it is: it trains what it trains. The scale s stays that of ``config``.

    Args:
        architecture: the model's configuration.
        config: the method and where it goes.
        budget: how many parameters.
    """
    method = config.resolved
    if method.selection is not None:
        return dataclasses.replace(config, budget=budget)
    if not method.formula.has_rank:
        return config
    layers = adapt(without_weights(architecture), dataclasses.replace(config, r=1)).values()
    rank = uniform_rank(method, [layer.sizes["default"] for layer in layers], budget)
    return dataclasses.replace(config, r=rank, alpha=config.alpha * rank / config.r)
