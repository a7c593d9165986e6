"""Learning rates by factor."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import SubspaceError


def is_second_factor(name: str) -> bool:
    """Whether a parameter of this name in a model is a factor B, the one that LoRA+ trains faster."""
    parts = name.split(".")
    return len(parts) > 2 and parts[-3] == "subspace_params" and parts[-1] == "B"


def parameter_groups(model: nn.Module, learning_rate: float, b_ratio: float = 1.0) -> list[dict[str, Any]]:
    """Return optimiser groups in which every factor B has ``b_ratio`` times the rate of all else.

    That is LoRA+ (arXiv 2402.12354), for any method with factors A and B; its authors advise a ratio of about 16.

    Raises:
        SubspaceError: the ratio is not 1, and the model trains no factor B.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    faster = [parameter for name, parameter in trained if is_second_factor(name)]
    others = [parameter for name, parameter in trained if not is_second_factor(name)]
    if b_ratio != 1.0 and not faster:
        raise SubspaceError("a ratio for B is given, and the model trains no factor B")
    return [{"params": others, "lr": learning_rate}, {"params": faster, "lr": b_ratio * learning_rate}]
