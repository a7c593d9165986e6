"""Learning rates by factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..algebra import Formula
from ..errors import SubspaceError, nearest
from .layer import SubspaceLayer


def second_factors(model: nn.Module) -> list[nn.Parameter]:
    """Return the factors B of all adapters in a model, which LoRA+ trains faster."""
    return [
        parameter
        for layer in model.modules()
        if isinstance(layer, SubspaceLayer)
        for adapter, state in layer.adapters.items()
        for name, parameter in layer.subspace_params[adapter].named_parameters()
        if name in _leading_up(state.method.formula)
    ]


def _leading_up(formula: Formula) -> set[str]:
    """Return the names of the factors that lead up from the rank of a low-rank term, and down to none."""
    down, up = ({name for term in formula.low_rank for name in getattr(term, side).names} for side in ("down", "up"))
    return up - down


def ratios(
    model: nn.Module, b_ratio: float = 1.0, rates: Mapping[str, float] | None = None
) -> list[tuple[nn.Parameter, float]]:
    """Return the factors with a learning rate of their own, each with its multiple of the others' rate.

    Args:
        model: the model with its adapters.
        b_ratio: the multiple for every factor B (LoRA+).
        rates: multiples by factor name; they take precedence over ``b_ratio``.

    Raises:
        SubspaceError: the model trains no factor of a name, or no factor B where ``b_ratio`` is not 1.
    """
    named = {
        id(parameter): name
        for layer in model.modules()
        if isinstance(layer, SubspaceLayer)
        for adapter in layer.adapters
        for name, parameter in layer.subspace_params[adapter].named_parameters()
        if parameter.requires_grad
    }
    for name, rate in (rates or {}).items():
        if name not in named.values():
            told = nearest(name, sorted(set(named.values())))
            raise SubspaceError(f"there is a rate for the factor {name!r}, which the model does not train: {told}")
        if not 0 < rate < math.inf:
            raise SubspaceError(f"the rate of the factor {name!r} is {rate}: it must be a multiple above 0")
    second = {id(parameter) for parameter in second_factors(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if b_ratio != 1.0 and not any(id(parameter) in second for parameter in trained):
        raise SubspaceError("a ratio for B is given, but the model trains no factor B, which leads back up from a rank")
    chosen = dict.fromkeys(second, b_ratio) | {
        key: rates[name] for key, name in named.items() if rates and name in rates
    }
    return [(one, chosen[id(one)]) for one in trained if chosen.get(id(one), 1.0) != 1.0]


def parameter_groups(
    model: nn.Module, learning_rate: float, b_ratio: float = 1.0, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return optimiser groups in which some factors have a learning rate of their own.

    ``b_ratio`` is LoRA+ (arXiv 2402.12354), for any method with a low-rank term: B is the factor that leads back up
    from the rank, whatever its name. The authors recommend a ratio of about 16.

    Args:
        model: the model with its adapters.
        learning_rate: the rate of all other parameters.
        b_ratio: the multiple of ``learning_rate`` for every factor B.
        rates: multiples by factor name, such as ``{"D1": 0.5}``; they take precedence over ``b_ratio``.

    Raises:
        SubspaceError: the model trains no factor of a name, or no factor B where ``b_ratio`` is not 1.
    """
    own = ratios(model, b_ratio, rates)
    chosen = {id(parameter) for parameter, _ in own}
    others = [one for one in model.parameters() if one.requires_grad and id(one) not in chosen]
    groups: list[dict[str, Any]] = [{"params": others, "lr": learning_rate}]
    for ratio in sorted({ratio for _, ratio in own}):
        params = [parameter for parameter, found in own if found == ratio]
        groups.append({"params": params, "lr": ratio * learning_rate})
    return groups
