"""The penalties' gradients, added before an optimiser's step if no backward pass has reached them.

The gradient of a penalty is added to the factors' gradients once per step: after accumulation, after the processes have
averaged their gradients and after the loss scale is divided out. Gradient clipping runs before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .penalties import gate_penalty, pattern_penalty
from .reached import Penalised, record, recorded
from .sites import keep_parts
from .zero import gradient_part, stepped_elsewhere

_installed: list[Any] = []


def install() -> None:
    """Make every optimiser of this process call ``before_step``; later calls do nothing."""
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(before_step))


def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Add what is missing; if the step has a closure that runs the backward pass, at the end of the closure."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        add_missing(optimizer)
        keep_parts(optimizer)
        return None
    closed = partial(_closed, closure, optimizer)
    return ((args[0], closed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closed})


def _closed(closure: Callable[[], Any], optimizer: Optimizer) -> Any:
    loss = closure()
    added = add_missing(optimizer)
    keep_parts(optimizer)
    return loss if added is None or loss is None else loss + added


class Due(NamedTuple):
    """A factor whose gradient lacks its penalty's; ``gradient`` is that gradient, or this process's part of it."""

    place: int
    site: Penalised
    name: str
    factor: nn.Parameter
    gradient: Tensor
    start: int | None  # of the part within the flattened factor, under ZeRO


def add_missing(optimizer: Optimizer) -> Tensor | None:
    """Add the gradient of every penalty that no backward pass has reached; return the penalties' value, if any."""
    due = _due(optimizer)
    if not due:
        return None
    sites = dict.fromkeys(entry.site for entry in due)
    with torch.enable_grad():
        terms = [term for site in sites for term in (pattern_penalty(site), gate_penalty(site)) if term is not None]
        missing = torch.autograd.grad(terms, [entry.factor for entry in due], allow_unused=True)
    scale = getattr(optimizer, "grad_scale", None)  # set by a GradScaler that leaves the division to a fused step
    for entry, added in zip(due, missing, strict=True):
        if added is not None:
            if entry.start is not None:
                added = added.flatten().narrow(0, entry.start, len(entry.gradient))
            entry.gradient.add_(added.to(entry.gradient.dtype) * (1.0 if scale is None else scale))
        record(entry.site.layer).acted = True
        _handle(entry.site, entry.name, entry.factor)
    total = terms[0].detach()
    for term in terms[1:]:
        total = total + term.detach().to(total.device)
    return total


def _due(optimizer: Optimizer) -> list[Due]:
    """Return an optimiser's factors whose penalty is missing, in its own order, which is the same in all processes."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {id(parameter): place for place, parameter in enumerate(own)}
    found = []
    for order, site in enumerate(recorded()):
        for name, factor in site.factors().items():
            part = gradient_part(factor, optimizer)
            if part is not None:
                (gradient, start), place = part, order
            elif id(factor) in places and factor.grad is not None:
                gradient, start, place = factor.grad, None, places[id(factor)]
            else:
                record(site.layer).acted |= stepped_elsewhere(factor)
                continue
            held = record(site.layer).reached
            reached = (site.adapter, name) in held
            held.discard((site.adapter, name))
            if reached or _handled(site, name, factor):
                _handle(site, name, factor)
            elif site.layer.training and site.enabled() and factor.requires_grad:
                found.append(Due(place, site, name, factor, gradient, start))
    return sorted(found, key=lambda due: due.place)


def _handle(site: Penalised, name: str, factor: nn.Parameter) -> None:
    if factor.grad is not None:
        record(site.layer).handled[site.adapter, name] = (ref(factor.grad), factor.grad._version)


def _handled(site: Penalised, name: str, factor: nn.Parameter) -> bool:
    """Return whether this gradient has its penalty: one optimiser may call another's step with the same gradients."""
    gradient, version = record(site.layer).handled.get((site.adapter, name), (None, 0))
    return gradient is not None and factor.grad is gradient() and factor.grad._version == version  # type: ignore[union-attr]
