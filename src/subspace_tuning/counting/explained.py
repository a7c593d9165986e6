"""Explanations of a formula in a model: its placement, and how much it trains there."""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from ..methods.explanation import Explanation, InModel, explained
from ..tuner import SubspaceConfig
from .count import count_in
from .plans import plans_in


def explain_in(architecture: PretrainedConfig, config: SubspaceConfig, rows: int) -> Explanation:
    """Explain a config's method in a model; numbers per matrix are for the most frequent size.

    Args:
        architecture: the model's configuration; it is built without weights.
        config: the adapter.
        rows: the number of rows at once, batch x tokens, for the plan.

    Raises:
        SubspaceError: the adapter does not fit the model.
    """
    planned = list(plans_in(architecture, config, rows, training=True))
    counted = count_in(architecture, config)
    most = max(planned, key=lambda one: len(one.modules))
    return dataclasses.replace(
        explained(config.resolved, most.sizes, rows),
        model=InModel(
            counted.matrices,
            counted.trainable,
            counted.total,
            counted.per_mille,
            tuple((one.sizes.n, one.sizes.m, len(one.modules)) for one in planned),
        ),
    )
