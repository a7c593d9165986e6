"""A warning for adapted modules that a forward pass does not use: nothing calls them or reads their weight."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .layer import SubspaceLayer
from .walking import layers_of


def warn_of_unreached(model: nn.Module) -> None:
    """Warn of adapted modules that a forward pass of a model does not reach.

    The first training pass names every such module. Outside training, where only part of a model may be called, a
    warning needs an adapter that is not reached at all.
    """
    for report in (_report, _report_idle):
        if report not in model._forward_hooks.values():
            model.register_forward_hook(report)


def forget_unreached(model: nn.Module) -> None:
    """Stop warning."""
    _remove(model, _report)
    _remove(model, _report_idle)


def _remove(model: nn.Module, hook: Callable[..., None]) -> None:
    for key in [key for key, found in model._forward_hooks.items() if found is hook]:
        del model._forward_hooks[key]


def _report(model: nn.Module, args: Any, outputs: Any) -> None:
    """Warn once, except of a module whose namesake in another layer or expert was reached: its turn may come."""
    if not model.training or torch.compiler.is_compiling():
        return
    layers = _applied(model)
    if not layers:
        return
    forget_unreached(model)
    reached = {_without_numbers(name) for name, layer in layers.items() if layer.reached}
    missed = {name: layer for name, layer in layers.items() if _without_numbers(name) not in reached}
    if missed:
        warnings.warn(
            f"adapted modules were not used in a training pass, so nothing in them trains: {_named(model, missed)}; "
            "leave them out with exclude_modules, or adapt the modules that are called",
            stacklevel=2,
        )


def _report_idle(model: nn.Module, args: Any, outputs: Any) -> None:
    if model.training or torch.compiler.is_compiling():
        return
    first = next((layer for _, layer in layers_of(model)), None)
    if first is None or first.disable_adapters or first.merged:  # then all are: do not search them every time
        return
    layers = _applied(model)
    if not layers:
        return
    _remove(model, _report_idle)
    if not any(layer.reached for layer in layers.values()):
        warnings.warn(
            f"no adapted module was used in a forward pass, so the adapter changes nothing: {_named(model, layers)}; "
            "adapt the modules that are called",
            stacklevel=2,
        )


def _applied(model: nn.Module) -> dict[str, SubspaceLayer]:
    """Return the layers whose adapters are neither disabled nor merged, by name."""
    return {name: layer for name, layer in layers_of(model) if layer.applied}


def _named(model: nn.Module, layers: Mapping[str, SubspaceLayer]) -> str:
    return ", ".join(f"{name}{_sharing(model, layer)}" for name, layer in layers.items())


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _sharing(model: nn.Module, layer: SubspaceLayer) -> str:
    """Return which other modules share the layer's weight."""
    own, weight = layer.get_base_layer(), layer.frozen_weight
    holders = [name for name, part in model.named_modules() if part._parameters.get("weight") is weight and part != own]
    names = ", ".join(name.removesuffix(".base_layer") for name in holders)
    return f" (it shares its weight with {names})" if names else ""
