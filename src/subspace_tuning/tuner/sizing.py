"""Configs for a budget: the rank or the number of entries, and the rows of peft's own methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import peft
from transformers import PreTrainedModel

from ..algebra import FormulaError, Sizes
from ..errors import SubspaceError
from ..methods import Hosted
from ..theory.budget import uniform_rank
from .budget import copies, matrix_shape
from .config import SubspaceConfig
from .targets import place, targets


def sized(model: PreTrainedModel, config: SubspaceConfig, budget: int) -> SubspaceConfig:
    """Return the config with the rank, or the number of entries, that comes closest to a budget in this model.

    The config of a method without either is returned unchanged. The scale s is kept.
    """
    method = config.resolved
    if method.chooser is not None:
        return replace(config, budget=budget)
    if not method.formula.has_rank:
        return config
    placed = replace(config, r=2)  # the lowest rank of all methods
    place(model, placed)
    sizes = [Sizes(*matrix_shape(module), 1) for _, module in targets(model, placed) for _ in range(copies(module))]
    return _of_rank(config, uniform_rank(method, sizes, budget))


def _of_rank(config: SubspaceConfig, rank: int) -> SubspaceConfig:
    """Return the config with the nearest rank at which its method can leave its start."""

    def of(rank: int) -> SubspaceConfig:
        return replace(config, r=rank, alpha=config.alpha * rank / config.r)

    try:
        return of(rank)
    except FormulaError:  # such as that of reflections, which start in pairs
        return of(rank + 1)


def peft_config(known: Hosted, size: int, common: Mapping[str, Any]) -> peft.PeftConfig:
    """Return peft's config for one of its own methods, with ``size`` rows. Raises SubspaceError if there are none."""
    if size < 1:
        raise SubspaceError(f"the number of rows r = {size!r} is not a positive whole number")
    config: peft.PeftConfig = getattr(peft, known.config)(**{known.size: size}, **common)
    return config
