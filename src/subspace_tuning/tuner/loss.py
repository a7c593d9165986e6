"""The penalty as part of the loss that a model computes in training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from .penalties import in_use, penalty_of
from .reached import Penalised, record

IGNORED = -100  # the label that transformers ignores in a loss
PATIENCE = 200
"""Training passes, none of whose backward passes or optimiser steps reach the penalty, before a warning."""


@dataclass
class Passes:
    """The training passes of one model."""

    without_penalty: int = 0
    warned: bool = False
    last: Tensor | None = None  # the penalty of the last training pass


_PASSES: WeakKeyDictionary[nn.Module, Passes] = WeakKeyDictionary()


def passes(model: nn.Module) -> Passes:
    """Return the record of training passes of a model on which ``add_penalty`` is registered."""
    return _PASSES.setdefault(model, Passes())


def add_penalty(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    """Add the penalties of patterns and gates to the loss in a model's outputs (a forward hook)."""
    if not model.training or not torch.is_grad_enabled():
        return outputs
    sites = [site for site in in_use(model) if any(factor.requires_grad for factor in site.factors().values())]
    if not sites:
        return outputs
    loss = _loss(outputs)
    if torch.compiler.is_compiling():
        # A compiled pass cannot record that a backward pass reached the penalty, so its gradient is added at the step.
        return outputs if loss is None else _replaced(outputs, loss + _fitting(penalty_of(sites, model).detach(), loss))
    share = _share(model, kwargs)
    _watch(model, sites)
    if loss is None or share is None:
        return outputs
    added = penalty_of(sites, model)
    passes(model).last = added.detach()
    return _replaced(outputs, loss + _fitting(share * added, loss))


def _fitting(added: Tensor, loss: Tensor) -> Tensor:
    return added.to(loss.device, loss.dtype)


def _loss(outputs: Any) -> Tensor | None:
    """Return the loss in a model's outputs, if there is one that requires a gradient."""
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    elif isinstance(outputs, (tuple, list)) and not hasattr(outputs, "loss"):
        loss = outputs[0] if outputs else None
        loss = loss if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad else None
    else:
        loss = getattr(outputs, "loss", None)
    return loss if isinstance(loss, Tensor) else None


def _replaced(outputs: Any, loss: Tensor) -> Any:
    """Return the outputs with another loss."""
    if hasattr(outputs, "_replace"):
        return outputs._replace(loss=loss)
    if isinstance(outputs, (tuple, list)):
        return type(outputs)((loss, *outputs[1:]))
    if isinstance(outputs, dict):
        outputs["loss"] = loss  # an output class of transformers sets its attribute as well
    else:
        outputs.loss = loss
    return outputs


def _share(model: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | float | None:
    """Return the share of the penalty that a pass carries, or None if it cannot be determined.

    A trainer that divides the loss by the number of labels of a whole step (``num_items_in_batch``) sums the passes of
    all processes. So each carries the penalty in proportion to its share of those labels, counted as the Trainer does.
    """
    total = kwargs.get("num_items_in_batch")
    if total is None:
        return 1.0
    labels = kwargs.get("shift_labels")
    if labels is None:
        labels = kwargs.get("labels")
        if isinstance(labels, Tensor) and _shifts_labels(model):
            labels = labels[..., 1:]
    if not isinstance(labels, Tensor):
        return None
    count = labels.ne(IGNORED).sum()
    return count / torch.as_tensor(total, device=count.device, dtype=torch.float32).flatten()[0].clamp_min(1.0)


def _shifts_labels(model: nn.Module) -> bool:
    """Return whether the model's loss compares position i with label i + 1, as in causal language models."""
    causal = LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss
    return causal and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _watch(model: nn.Module, sites: list[Penalised]) -> None:
    """Warn once if nothing has differentiated the penalty after many training passes."""
    seen, records = passes(model), [record(site.layer) for site in sites]
    if any(held.acted for held in records):
        seen.without_penalty = 0
        for held in records:
            held.acted = False
    seen.without_penalty += 1
    if seen.without_penalty > PATIENCE and not seen.warned:
        seen.warned = True
        warnings.warn(
            f"the penalty on the factors has not reached a gradient in {PATIENCE} training passes: the loss is not the "
            "model's own, and no torch optimiser steps its factors; add penalty(model) to the loss "
            "(subspace_tuning.penalty)",
            UserWarning,
            stacklevel=3,
        )
