"""Hooks of adapters on a model: a penalty in its loss, and a count of its training passes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ..methods.patterns import MEAN
from .config import SubspaceConfig
from .loss import add_penalty
from .optimizer_step import install
from .penalties import penalised
from .reached import Penalised, record
from .saving import count_pass
from .walking import layers_of


def penalise(model: nn.Module, adapter: str, config: SubspaceConfig) -> None:
    """Make an adapter's penalties act in training: in the model's own loss, or otherwise at the optimiser's step."""
    sites = list(penalised(model, adapter))
    counted = sum(site.layer.copies for site in sites if site.pattern_weight > 0 and site.layer.adapters[adapter].r > 0)
    for site in sites:
        record(site.layer)
        if config.pattern_reduction == MEAN and counted:
            site.layer.weigh_patterns(adapter, site.pattern_weight / counted)
    if add_penalty not in model._forward_hooks.values():
        model.register_forward_hook(add_penalty, with_kwargs=True)
    install()


def count_passes(model: nn.Module, adapter: str, config: SubspaceConfig) -> None:
    """Count the training passes of an adapter whose method has a schedule."""
    model.register_forward_hook(partial(_count_pass, adapter, config))


def remove_hooks(model: nn.Module) -> None:
    """Remove the hooks of the functions above from a model."""
    for key in [key for key, hook in model._forward_hooks.items() if _is_own(hook)]:
        del model._forward_hooks[key]
        model._forward_hooks_with_kwargs.pop(key, None)


def _count_pass(adapter: str, config: SubspaceConfig, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    layer = next((layer for _, layer in layers_of(model) if adapter in layer.adapters), None)
    if layer is not None and Penalised(layer, adapter).enabled():
        count_pass(config)


def _is_own(hook: Any) -> bool:
    return hook is add_penalty or (isinstance(hook, partial) and hook.func is _count_pass)
