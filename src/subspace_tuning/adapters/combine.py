"""Several adapters in one: the weighted sum of their changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..algebra import Sizes
from ..errors import SubspaceError
from ..models.checkpoint import Checkpoint
from ..theory.change import Change, summed
from ..theory.convert import factored, is_low_rank
from .adapter import Adapter
from .convert import ConvertedAdapter, layer_change, result_of, target_config


def combine_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    to: str | None = None,
    rank: int | None = None,
    base: Checkpoint | None = None,
    head: int | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> ConvertedAdapter:
    """Combine adapters: the new change of every matrix is the weighted sum of theirs, not the sum of their factors.

    Args:
        adapters: the adapters, of any methods.
        weights: a number for each.
        to: the method of the result; LoRA by default.
        rank: the rank of the result; by default the sum of their ranks, which is exact.
        base: the base model, for changes that the factors alone do not determine.
        head: the number, from 1, of the adapter whose whole modules are kept if they differ.
        on_progress: called after each matrix.

    Raises:
        SubspaceError: the numbers do not match, the adapters belong to different models, or a matrix cannot be
            converted.
    """
    if len(adapters) < 2 or len(adapters) != len(weights):
        raise SubspaceError(
            f"give two or more adapters, and a weight for each ({len(adapters)} and {len(weights)} given)"
        )
    target = target_config(to or "lora").resolved
    if not is_low_rank(target):
        raise SubspaceError(
            f"adapters are combined into W plus one low-rank term, such as lora; {target.formula} is not of that form"
        )
    found = {}
    for module in dict.fromkeys(name for adapter in adapters for name in adapter.layers):
        own = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if module in adapter.layers]
        sizes, change = _sum(module, own, base)
        found[module] = sizes, factored(target, change, sizes, rank, 1.0)
        on_progress()
    return result_of(_joined(adapters, head), to or "lora", found, base)


def _sum(module: str, adapters: Sequence[tuple[Adapter, float]], base: Checkpoint | None) -> tuple[Sizes, Change]:
    """Return the weighted sum of the changes that adapters make to one matrix."""
    changes: list[Change] = []
    for adapter, _ in adapters:
        try:
            sizes, change = layer_change(adapter.layers[module], base, adapter.source)
        except SubspaceError as error:
            raise SubspaceError(f"{module}: {error}") from None
        if changes and (len(change.left), len(change.right)) != (len(changes[0].left), len(changes[0].right)):
            raise SubspaceError(f"{module}: the adapters are for matrices of different shapes")
        changes.append(change)
    return sizes, summed(changes, [weight for _, weight in adapters])


def _joined(adapters: Sequence[Adapter], head: int | None) -> Adapter:
    """Return one of the adapters with all modules saved whole; if they differ, those of the chosen adapter."""
    if head is not None and not 1 <= head <= len(adapters):
        raise SubspaceError(f"head = {head}: there are adapters 1 to {len(adapters)}")
    first = adapters[0 if head is None else head - 1]
    for other in adapters:
        if first.base and other.base and first.base != other.base:
            raise SubspaceError(f"adapters of different base models: {first.base} and {other.base}")
        for name in first.saved.keys() & other.saved.keys():
            if head is None and not torch.equal(first.saved[name], other.saved[name]):
                raise SubspaceError(
                    f"{name} was trained whole in {first.source!r} and in {other.source!r}, and heads cannot be "
                    "added: choose whose to keep with --head"
                )
    saved = {name: tensor for adapter in (*adapters, first) for name, tensor in adapter.saved.items()}
    known = [adapter.config.layouts for adapter in adapters]
    config = copy.copy(first.config)
    config.layouts = (
        None if None in known else {name: one for layouts in known for name, one in (layouts or {}).items()}
    )
    return dataclasses.replace(first, config=config, saved=saved)
