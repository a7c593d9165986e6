"""Choosing from data what to train: the entries of masks, or whole biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SubspaceError
from .budget import budget_of
from .config import SubspaceConfig
from .exact import exactly
from .kinds import kind_of
from .layer import SubspaceLayer
from .targets import check_targets, place, targets
from .weights import check_at_hand, check_gradient

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], Tensor]


def calibrate(
    model: nn.Module, config: SubspaceConfig, batches: Iterable[Batch], loss: Loss | None = None
) -> SubspaceConfig:
    """Return the config with its choice made from a few batches; the model is unchanged.

    Examples:
        >>> config = calibrate(model, SubspaceConfig(method="fishmask", budget=0.005), batches)
        >>> model = get_peft_model(model, config)

    Args:
        model: the model to adapt, with its head, before it is adapted.
        config: the config of a method that needs data (``fishmask``, ``fish_dip``, ``spt``, ``s_bitfit``).
        batches: keyword arguments of the model; the first dimension of each tensor counts the examples.
        loss: a function of the model and a batch that returns a scalar; by default ``model(**batch).loss``.

    Raises:
        SubspaceError: the method needs no data, there are no batches or no loss, or the budget exceeds the matrices.
    """
    method = config.resolved
    if not method.needs_calibration:
        raise SubspaceError(f"method {method.name!r} chooses nothing from data: use its config directly")
    config = copy.copy(config)
    place(model, config)
    check_targets(model, config)
    found = dict(targets(model, config))
    for name, module in found.items():
        check_at_hand(module, name)
    chooser = method.chooser
    assert chooser is not None
    if chooser.scored == "weight":
        for name, module in found.items():
            check_gradient(module, name)
    scores = _squares(model, {name: getattr(one, chooser.scored) for name, one in found.items()}, batches, loss)
    if chooser.scored == "weight":
        scores = {name: _oriented(found[name], square) for name, square in scores.items()}
    total = sum(square.numel() for square in scores.values())
    positions, modules = chooser.choose(scores, budget_of(config, total), config.r)
    if positions is None:
        return config.with_choice(target_modules=exactly(modules or (), (name for name, _ in model.named_modules())))
    entries = {name: [len(index), *scores[name].shape] for name, index in positions.items()}
    return config.with_choice(entries=entries, positions=positions)


def fisher(layers: Mapping[str, SubspaceLayer], run: Callable[[], Iterator[Tensor]]) -> dict[str, Tensor]:
    """Return the sum over losses of the squared gradient of each layer's W (n x m).

    ``run`` yields one loss per example, each computed on demand.
    """
    for name, layer in layers.items():
        check_gradient(layer.get_base_layer(), name)
    weights = {name: layer.frozen_weight for name, layer in layers.items()}
    squares = _summed(weights, run)
    return {name: layers[name].kind.matrix(square) for name, square in squares.items()}


def _squares(
    model: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[Batch], loss: Loss | None
) -> dict[str, Tensor]:
    """Return the Fisher information of parameters: the mean over examples of their squared gradient."""
    examples = 0

    def losses() -> Iterator[Tensor]:
        nonlocal examples
        for batch in batches:
            for example in single(batch):
                examples += 1
                yield loss_of(model, example, loss)

    with evaluating(model):
        squares = _summed(parameters, losses)
    if not examples:
        raise SubspaceError("calibrate was given no batches")
    return {name: square / examples for name, square in squares.items()}


def _summed(parameters: Mapping[str, Tensor], losses: Callable[[], Iterator[Tensor]]) -> dict[str, Tensor]:
    wanted = list(parameters.values())
    before = [parameter.requires_grad for parameter in wanted]
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in wanted]
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for value in losses():
            for total, gradient in zip(sums, torch.autograd.grad(value, wanted, allow_unused=True), strict=True):
                if gradient is not None:
                    total.add_(gradient.float().square())
    finally:
        for parameter, flag in zip(wanted, before, strict=True):
            parameter.requires_grad_(flag)
    return dict(zip(parameters, sums, strict=True))


def single(batch: Batch) -> Iterator[dict[str, Any]]:
    """Yield the examples of a batch as batches of one."""
    counts = {len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()}
    if len(counts) != 1:
        raise SubspaceError("the tensors of a batch do not agree on the number of examples")
    for i in range(counts.pop()):
        yield {key: value[i : i + 1] if isinstance(value, Tensor) else value for key, value in batch.items()}


def loss_of(model: nn.Module, batch: Batch, loss: Loss | None = None) -> Tensor:
    """Return the loss of a batch. Raises SubspaceError if the model returns none."""
    value = model(**batch).loss if loss is None else loss(model, batch)
    if not isinstance(value, Tensor):
        raise SubspaceError("the model returns no loss for the batches: put `labels` into them, or give `loss`")
    return value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off during the body."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _oriented(module: nn.Module, square: Tensor) -> Tensor:
    kind = kind_of(module)
    assert kind is not None
    return kind.matrix(square)


def hardest(model: nn.Module, batches: Sequence[Batch], share: float, loss: Loss | None = None) -> list[dict[str, Any]]:
    """Return the examples with the largest loss, as batches of one."""
    examples = [example for batch in batches for example in single(batch)]
    with torch.no_grad():
        losses = torch.stack([loss_of(model, example, loss).float() for example in examples])
    keep = losses.topk(max(1, round(share * len(examples)))).indices.sort().values
    return [examples[i] for i in keep.tolist()]
