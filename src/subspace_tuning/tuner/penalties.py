"""What patterns and gates add to the loss, and how orthogonal the factors have become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..algebra.gate import Gate, expected_open
from ..algebra.nodes import dense
from ..errors import SubspaceError
from ..methods import patterns
from ..methods.patterns import Orthogonality, read_patterns
from .layer import SubspaceLayer


class Pair(NamedTuple):
    """A (n x r) and B (r x m) of one adapter in one module, with the penalties that the config asks for."""

    module: str
    adapter: str
    A: Tensor
    B: Tensor
    patterns: tuple[str, ...]
    weight: float


def penalty(model: nn.Module, pattern: str | None = None, weight: float | None = None) -> Tensor | None:
    """Return what the active adapters' patterns and gates add to the loss; None if they add nothing.

    The forward pass of a model from ``get_peft_model`` adds it to ``outputs.loss`` in training. A loop of one's own
    that computes its loss from logits adds it by hand, and so does one with peft's own LoRA, for which the pattern is
    given here: ``penalty(model, pattern="orthogonal", weight=1e-3)``.

    Args:
        model: a model with subspace adapters, or with adapters of peft's LoRA.
        pattern: instead of the config's; needed for peft's LoRA. "nonlinear" is no penalty.
        weight: instead of the config's ``pattern_weight``; 1 if only ``pattern`` is given.

    Raises:
        SubspaceError: a pattern is given, and the model has no factors A and B, or no such pattern exists.
    """
    wanted = None if pattern is None else read_patterns(pattern)
    total: Tensor | None = None
    found = False
    for pair in pairs(model, penalised=wanted is None):
        found = True
        own, own_weight = pair.patterns, pair.weight
        if wanted is not None:
            own, own_weight = wanted, 1.0
        factor = own_weight if weight is None else weight
        if factor and set(own) & set(patterns.PENALTIES):
            added = factor * patterns.penalty(pair.A, pair.B, own)
            total = added if total is None else total + added
    if wanted is not None and not found:
        raise SubspaceError("a pattern is given, and no active adapter of the model has factors A and B")
    for layer, adapter in _active(model):
        if not layer.gate_weight[adapter]:
            continue
        for node in layer.method[adapter].formula.expression.walk():
            if isinstance(node, Gate):
                logits = dense(node.node, layer._environment(adapter))
                added = layer.gate_weight[adapter] * expected_open(logits)
                total = added if total is None else total + added
    return total


def orthogonality(model: nn.Module) -> dict[str, Orthogonality]:
    """Return for every adapted module how orthogonal A's columns and B's rows are, of each active adapter."""
    return {f"{pair.module}.{pair.adapter}": patterns.orthogonality(pair.A, pair.B) for pair in pairs(model)}


def pairs(model: nn.Module, penalised: bool = False) -> Iterator[Pair]:
    """Yield the factors A and B of every active adapter, of this package's and of peft's LoRA.

    ``penalised`` leaves out those whose config asks for no penalty.
    """
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLayer):
            for adapter in module.active_adapters:
                if adapter not in module.subspace_params or (penalised and not module.patterns[adapter][1]):
                    continue
                if patterns.has_pair(module.method[adapter].formula):
                    env = module._environment(adapter)
                    yield Pair(name, adapter, env["A"], env["B"], *module.patterns[adapter])
        elif isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                found = _lora(module, adapter)
                if found is not None:
                    yield Pair(name, adapter, *found, (), 1.0)


def _lora(layer: Any, adapter: str) -> tuple[Tensor, Tensor] | None:
    """Return peft's factors as A (n x r) and B (r x m); convolutions with their windows among the inputs."""
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight.flatten(1).T, layer.lora_B[adapter].weight.flatten(1).T
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter].T, layer.lora_embedding_B[adapter].T
    return None


def _active(model: nn.Module) -> Iterator[tuple[SubspaceLayer, str]]:
    for module in model.modules():
        if isinstance(module, SubspaceLayer):
            yield from ((module, name) for name in module.active_adapters if name in module.subspace_params)
