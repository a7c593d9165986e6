"""Schedules on a model: what they act on, and how a training loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import SubspaceError
from ..methods.schedules import SCHEDULES, Context, Schedule, Site
from .config import SubspaceConfig
from .layer import SubspaceLayer


def schedule(
    model: nn.Module,
    total_steps: int,
    scores: Callable[[], Mapping[str, Tensor]] | None = None,
    adapter_name: str = "default",
) -> Schedule | None:
    """Return the schedule of an adapter for a run of so many optimiser steps, None if its method has none.

    >>> plan = schedule(model, total_steps=1000)
    >>> for step in range(1, 1001):
    ...     loss.backward(); optimizer.step()
    ...     plan.step(step)
    ...     optimizer.zero_grad()

    Args:
        model: a model from ``get_peft_model``.
        total_steps: optimiser steps of the run.
        scores: for schedules that move masks: Fisher information by module name (see ``Context``).
        adapter_name: the adapter.

    Raises:
        SubspaceError: the schedule is longer than the run, or needs ``scores``.
    """
    config = config_of(model, adapter_name)
    if config is None or config.resolved.schedule is None:
        return None
    options = config.schedule_options
    assert options is not None
    context = Context(sites(model, adapter_name), total_steps, scores)
    return SCHEDULES[config.resolved.schedule](context, options)


def sites(model: nn.Module, adapter_name: str = "default") -> list[Site]:
    """Return the adapted matrices of an adapter."""
    return [
        Site(
            name,
            layer.subspace_params[adapter_name],  # type: ignore[arg-type]
            layer.subspace_constants[adapter_name]._buffers,  # type: ignore[arg-type]
            layer.kind.matrix(layer.weight).detach(),
            layer.scaling[adapter_name],
            layer.r[adapter_name],
        )
        for name, layer in adapted(model, adapter_name).items()
    ]


def adapted(model: nn.Module, adapter_name: str = "default") -> dict[str, SubspaceLayer]:
    """Return the layers that have an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and adapter_name in module.subspace_params
    }


def config_of(model: nn.Module, adapter_name: str = "default") -> SubspaceConfig | None:
    """Return the config of an adapter, None if it is not one of this package's."""
    tuner = next((module for module in model.modules() if isinstance(module, BaseTuner)), None)
    config = None if tuner is None else tuner.peft_config.get(adapter_name)
    if tuner is not None and config is None:
        raise SubspaceError(f"the model has no adapter {adapter_name!r}")
    return config if isinstance(config, SubspaceConfig) else None
