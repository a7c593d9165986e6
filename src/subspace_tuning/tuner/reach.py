"""A warning for adapted modules that take no part in a forward pass: nothing calls them or reads their weight."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn

from .layer import SubspaceLayer


def warn_of_unreached(model: nn.Module) -> None:
    """Warn after the next training forward of a model of every adapted module that it does not reach."""
    if _report not in model._forward_hooks.values():
        model.register_forward_hook(_report)


def forget_unreached(model: nn.Module) -> None:
    """Do not warn any more."""
    for key in [key for key, hook in model._forward_hooks.items() if hook is _report]:
        del model._forward_hooks[key]


def _report(model: nn.Module, args: Any, outputs: Any) -> None:
    """Warn once. Where a module of the same name in another layer or expert was reached, it may be this one's turn."""
    if not model.training or torch.compiler.is_compiling():
        return
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SubspaceLayer)}
    if not any(layer.applied for layer in layers.values()):
        return
    forget_unreached(model)
    reached = {_without_numbers(name) for name, layer in layers.items() if layer.reached}
    missed = [name for name, layer in layers.items() if layer.applied and _without_numbers(name) not in reached]
    if missed:
        named = [f"{name}{_sharing(model, layers[name])}" for name in missed]
        warnings.warn(
            f"adapted modules took no part in a training forward, so nothing there trains: {', '.join(named)}; leave "
            "them out with exclude_modules, or adapt the modules that are called",
            stacklevel=2,
        )


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _sharing(model: nn.Module, layer: SubspaceLayer) -> str:
    """Tell which other modules hold the layer's weight."""
    own, weight = layer.get_base_layer(), layer.frozen_weight
    holders = [name for name, part in model.named_modules() if part._parameters.get("weight") is weight and part != own]
    names = ", ".join(name.removesuffix(".base_layer") for name in holders)
    return f" (its weight is also that of {names})" if names else ""
