"""Base layers whose weight is computed: by torch's parametrisations, or by the older hooks."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .part import Part

_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def is_computed(module: nn.Module) -> bool:
    """Return whether the weight or the bias of a module is computed from other parameters."""
    return not isinstance(module, Part) and any(
        getattr(module, key, None) is not None and key not in module._parameters for key in ("weight", "bias")
    )


@torch.no_grad()
def compute(module: nn.Module) -> None:
    """Compute the weight of a module whose hook would otherwise do so in the next call."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _HOOKS):
            hook(module, ())


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module with its current weight and bias as parameters."""
    compute(module)
    plain = copy.deepcopy(module)
    if parametrize.is_parametrized(module):  # torch's own function would also change the class of the original
        plain.__class__ = parametrize.type_before_parametrizations(module)
        for key in plain._modules.pop("parametrizations"):  # type: ignore[union-attr]
            plain.register_parameter(key, nn.Parameter(getattr(module, key).detach().clone(), requires_grad=False))
    for hook in list(plain._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(plain, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(plain, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(plain, hook._tensor_name)
    return plain
