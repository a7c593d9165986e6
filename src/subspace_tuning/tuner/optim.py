"""Learning rates by factor."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..algebra import Formula
from ..errors import SubspaceError
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


def parameter_groups(model: nn.Module, learning_rate: float, b_ratio: float = 1.0) -> list[dict[str, Any]]:
    """Return optimiser groups in which every factor B has ``b_ratio`` times the learning rate of the others.

    This is LoRA+ (arXiv 2402.12354), for any method with a low-rank term: B is the factor that leads back up from the
    rank, whatever its name. The authors recommend a ratio of about 16.

    Raises:
        SubspaceError: the ratio is not 1, and the model trains no factor B.
    """
    second = {id(parameter) for parameter in second_factors(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    faster = [parameter for parameter in trained if id(parameter) in second]
    others = [parameter for parameter in trained if id(parameter) not in second]
    if b_ratio != 1.0 and not faster:
        raise SubspaceError("a ratio for B is given, but the model trains no factor B, which leads back up from a rank")
    return [{"params": others, "lr": learning_rate}, {"params": faster, "lr": b_ratio * learning_rate}]
