"""The penalties that patterns and gates add to the loss, and the orthogonality of the factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..algebra.nodes import Gate, expected_open
from ..errors import SubspaceError, nearest
from ..methods import patterns
from ..methods.patterns import Orthogonality, read_patterns
from .layer import SubspaceLayer
from .reached import Penalised, note_backward
from .sharding import gathered, partitioned, whole
from .stacks import dense_each
from .walking import Outside, layers_of

Pair = tuple[Tensor, Tensor]
"""A (n x r) and B (r x m) of a low-rank term."""


class Factored(NamedTuple):
    """The low-rank terms of one adapter in one module; ``enabled`` if the module's output currently depends on them."""

    module: str
    adapter: str
    pairs: list[Pair]
    enabled: bool
    matrices: int = 1


def penalty(
    model: nn.Module,
    pattern: str | None = None,
    weight: float | None = None,
    reduction: str = patterns.MEAN,
) -> Tensor:
    """Return the penalty of the active adapters' patterns and gates, as a scalar on the model's device.

    In training, ``outputs.loss`` of a model with subspace adapters already contains it. A loop that computes its loss
    elsewhere may add it; if no backward pass reaches it, its gradient is added before the optimiser's step (see
    ``docs/patterns.md``). It is zero if there is nothing to add, and while adapters are disabled or merged.

    For peft's own LoRA, give the pattern: ``loss + penalty(model, pattern="orthogonal", weight=1e-3)``.

    Args:
        model: a model with subspace adapters, or with adapters of peft's LoRA.
        pattern: overrides the config's; needed for peft's LoRA. "nonlinear" has no penalty.
        weight: overrides the config's ``pattern_weight``; 1 if only ``pattern`` is given.
        reduction: with ``pattern`` or ``weight``: the "mean" over each adapter's matrices, or their "sum".

    Raises:
        SubspaceError: the given pattern does not exist, or the model has no low-rank term for it.
    """
    if reduction not in patterns.REDUCTIONS:
        raise SubspaceError(f"unknown reduction {reduction!r}; {nearest(reduction, patterns.REDUCTIONS)}")
    sites = in_use(model)
    if pattern is None and weight is None:
        return penalty_of(sites, model)
    wanted = None if pattern is None else read_patterns(pattern)
    terms = [*map(gate_penalty, sites), *_overridden(model, wanted, weight, reduction)]
    total = _added_up(terms, model)
    note_backward(total, sites)
    return total


def penalty_of(sites: Iterable[Penalised], model: nn.Module) -> Tensor:
    """Return the penalty on the factors of some modules of a model."""
    sites = list(sites)
    total = _added_up([*map(pattern_penalty, sites), *map(gate_penalty, sites)], model)
    note_backward(total, sites)
    return total


def _added_up(terms: Iterable[Tensor | None], model: nn.Module) -> Tensor:
    """Return the sum of scalars, on the device of the first; zero on the model's device if there are none."""
    found = [term for term in terms if term is not None]
    if not found:
        parameter = next(model.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)
    total = found[0]
    for term in found[1:]:
        total = total + term.to(total.device)
    return total


def penalised(model: nn.Module, adapter: str | None = None) -> Iterator[Penalised]:
    """Yield all adapters, or one, in the modules where its config sets a penalty, whether active or not."""
    return _penalised(model, lambda layer: layer.adapters if adapter is None else layer.adapters.keys() & {adapter})


def in_use(model: nn.Module) -> list[Penalised]:
    """Return the penalised adapters on which their module's output currently depends."""
    return [site for site in _penalised(model, lambda layer: layer.applied) if site.enabled()]


def _penalised(model: nn.Module, adapters: Callable[[SubspaceLayer], Iterable[str]]) -> Iterator[Penalised]:
    for _, layer in layers_of(model):
        for adapter in adapters(layer):
            site = Penalised(layer, adapter)
            if site.pattern_weight or site.gate_weight:
                yield site


def pattern_penalty(site: Penalised) -> Tensor | None:
    """Return the weighted penalty on the patterns of A and B in one module, or None."""
    if not site.pattern_weight:
        return None
    return site.pattern_weight * _penalty_on(pairs_of(site.layer, site.adapter), site.patterns)


def _penalty_on(pairs: list[Pair], names: tuple[str, ...]) -> Tensor:
    first, *others = (patterns.penalty(A, B, names) for A, B in pairs)
    return sum(others, first)


def gate_penalty(site: Penalised) -> Tensor | None:
    """Return the weighted expected number of open gates in one module, or None."""
    if not site.gate_weight:
        return None
    total: Tensor | None = None
    for node in site.layer.adapters[site.adapter].method.formula.expression.walk():
        if isinstance(node, Gate):
            logits = dense_each(node.node, values_of(site.layer, site.adapter, node.names), site.layer.stacked)
            opened = site.gate_weight * expected_open(logits)
            total = opened if total is None else total + opened
    return total


def pairs_of(layer: SubspaceLayer, adapter: str) -> list[Pair]:
    """Return A and B of every low-rank term of an adapter, in every matrix of a stack.

    They are gathered from all processes if they are sharded.
    """
    terms = patterns.pairs(layer.adapters[adapter].method.formula)
    # Not a set, whose order differs between processes: all of them gather each name at the same time.
    names = dict.fromkeys(name for term in terms for name in (*term.down.names, *term.up.names))
    env = values_of(layer, adapter, names)
    found = [tuple(dense_each(side, env, layer.stacked) for side in (term.down, term.up)) for term in terms]
    return [pair for A, B in found for pair in (zip(A, B, strict=True) if layer.stacked else [(A, B)])]


def values_of(layer: SubspaceLayer, adapter: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of these names, gathered from all processes if they are sharded."""
    layer.follow_moves(adapter)
    state = layer.adapters[adapter]
    parameters: Mapping[str, Any] = layer.subspace_params[adapter]  # type: ignore[assignment]
    constants: Mapping[str, Any] = layer.subspace_constants[adapter]._buffers
    env: dict[str, Any] = {"s": state.scale, **constants}
    for name in names:
        if name in parameters:
            reading = state.method.readings[layer.kind.one_hot]
            env[name] = reading.value(name, _copied(parameters[name]), constants)
        elif name == "W":
            env[name] = layer.kind.matrix(whole(layer.frozen_weight))
    return env


def _copied(parameter: Tensor) -> Tensor:
    """Return a factor's whole value; under ZeRO-3, a copy that outlives the gathering."""
    if not partitioned(parameter):
        return whole(parameter)
    with gathered([parameter]):
        return parameter.clone()


def orthogonality(model: nn.Module) -> dict[str, Orthogonality]:
    """Return how orthogonal A's columns and B's rows are, for every adapted module and active adapter.

    A method with several low-rank terms has an entry for each, numbered from the second on.
    """
    return {
        ".".join((one.module, one.adapter, *([str(number)] if number > 1 else []))): patterns.orthogonality(A, B)
        for one in factored(model)
        for number, (A, B) in enumerate(one.pairs, 1)
    }


def factored(model: nn.Module) -> Iterator[Factored]:
    """Yield the low-rank terms of every active adapter, of this package's and of peft's LoRA."""
    for name, module in Outside(model).named_modules():
        if isinstance(module, SubspaceLayer):
            for adapter in module.active_adapters:
                if adapter in module.subspace_params and patterns.has_pair(module.adapters[adapter].method.formula):
                    enabled = Penalised(module, adapter).enabled()
                    yield Factored(name, adapter, pairs_of(module, adapter), enabled, module.copies)
        elif isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                found = _lora(module, adapter)
                if found is not None:
                    yield Factored(name, adapter, [found], not (module.disable_adapters or module.merged))


def _overridden(
    model: nn.Module, wanted: tuple[str, ...] | None, weight: float | None, reduction: str
) -> Iterator[Tensor]:
    """Yield the penalty of every module for a pattern and a weight that are given instead of the config's."""
    if wanted is None:
        found = [
            (site.adapter, pairs_of(site.layer, site.adapter), site.patterns, site.enabled(), site.layer.copies)
            for site in penalised(model)
            if site.pattern_weight
        ]
    else:
        found = [(one.adapter, one.pairs, wanted, one.enabled, one.matrices) for one in factored(model)]
        if not found:
            raise SubspaceError("a pattern is given, but no active adapter of the model has factors A and B")
    counts: Counter[str] = Counter()
    for adapter, *_, matrices in found:
        counts[adapter] += matrices
    for adapter, pairs, names, enabled, _ in found:
        if enabled and set(names) & set(patterns.PENALTIES):
            share = (1.0 if weight is None else weight) / (counts[adapter] if reduction == patterns.MEAN else 1)
            yield share * _penalty_on(pairs, names)


def _lora(layer: Any, adapter: str) -> Pair | None:
    """Return peft's factors as A (n x r) and B (r x m); a convolution's inputs include its window."""
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight.flatten(1).T, layer.lora_B[adapter].weight.flatten(1).T
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter].T, layer.lora_embedding_B[adapter].T
    return None
