"""The size of each row: how much it trains, and the rank at which that comes closest to a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from peft import TaskType
from transformers import PretrainedConfig

from ..counting.count import budget_in, count_hosted, count_in, count_peft, matched
from ..errors import SubspaceError
from ..methods import HOSTED
from ..models.heads import fresh_modules, head_modules, head_parameters, parameter_count
from ..models.meta import without_weights
from ..training.attach import build_adapter
from ..training.sections import FULL, HEAD, AdapterSection
from ..tuner import SubspaceConfig
from ..tuner.hosting import peft_config_of


class Size(NamedTuple):
    """A row's adapter with its rank chosen, and the numbers that it trains outside the head."""

    adapter: AdapterSection
    trained: int


def budget_of(architecture: PretrainedConfig, budget: int | str | None) -> int | None:
    """Return a budget as a number of a model's parameters. Raises SubspaceError if it is none."""
    return None if budget is None else budget_in(architecture, str(budget))


def size_of(architecture: PretrainedConfig, adapter: AdapterSection, budget: int | None) -> Size:
    """Return an adapter at the size that comes closest to a budget, or at its own size.

    What has no rank and no number of entries to choose stays as it is: its count is fixed.

    Args:
        architecture: the model's configuration; the model is built without its weights.
        adapter: the row's adapter section.
        budget: the number of parameters; None for the adapter's own size.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    if adapter.method in (FULL, HEAD):
        return Size(adapter, _outside_head(architecture, adapter) if adapter.method == FULL else 0)
    if budget is None and adapter.parameters is not None:
        budget = budget_in(architecture, adapter.parameters)
    config = build_adapter(adapter, ())
    if isinstance(config, SubspaceConfig):
        if budget is not None:
            if config.resolved.chooser is not None:  # there is no more to choose from than all
                budget = min(budget, count_in(architecture, replace(config, budget=1.0)).trainable)
            config = matched(architecture, config, budget)
            found: dict[str, Any] = {"parameters": None}
            if config.resolved.formula.has_rank:
                found |= {"r": config.r, "alpha": config.alpha}
            if config.resolved.chooser is not None:
                found["budget"] = config.budget
            adapter = replace(adapter, **found)
        return Size(adapter, count_in(architecture, config).trainable)
    if adapter.peft is not None:
        return _of_peft(architecture, adapter, adapter.peft, budget)
    method = adapter.method or ""

    def trained(r: int) -> int:
        return count_hosted(architecture, method, r).trainable

    own: int = getattr(config, HOSTED[method].size)
    r = own if budget is None else _nearest(trained, budget)
    return Size(replace(adapter, r=r), trained(r))


def _of_peft(
    architecture: PretrainedConfig, adapter: AdapterSection, values: Mapping[str, Any], budget: int | None
) -> Size:
    """Return the size of a config of peft's own; one with a field `r` is brought to the budget."""
    common = {"task_type": TaskType.SEQ_CLS, "modules_to_save": head_modules(without_weights(architecture))}

    def trained(changed: Mapping[str, Any]) -> int:
        config = peft_config_of({**values, **changed}, common)
        return count_peft(architecture, config, adapter.name, None).trainable

    has_rank = isinstance(getattr(peft_config_of(values, {}), "r", None), int)
    chosen: dict[str, Any] = {}
    if budget is not None and has_rank:
        chosen = {"r": _nearest(lambda r: trained({"r": r}), budget)}
    return Size(replace(adapter, peft={**values, **chosen}), trained(chosen))


def _nearest(count: Callable[[int], int], budget: int) -> int:
    """Return the rank whose count is closest to a budget; the count is linear in the rank."""
    first, second = count(1), count(2)
    if second <= first:
        raise SubspaceError("its count does not grow with r")
    below = max(1, 1 + (budget - first) // (second - first))
    return min((below, below + 1), key=lambda r: abs(first + (second - first) * (r - 1) - budget))


def _outside_head(architecture: PretrainedConfig, adapter: AdapterSection) -> int:
    model = without_weights(architecture)
    head = head_parameters(model, adapter.head or fresh_modules(model))
    return parameter_count(model) - sum(parameter.numel() for parameter in head)
