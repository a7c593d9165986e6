"""The head of a model: the modules trained whole with any adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the modules trained beside any method: those that the task's class adds, and the encoder's pooler.

    A checkpoint of the bare encoder has a pooler trained for another purpose, or none, so the pooler counts as head.
    """
    if model.base_model is model:  # not wrapped by a task's class, or the class is the encoder itself
        outside = [name for name, child in model.named_children() if _is_projection(child)]
    else:
        outside = [
            name for name, child in model.named_children() if name != model.base_model_prefix and parameter_count(child)
        ]
    pooler = getattr(model.base_model, "pooler", None)
    inside = ["pooler"] if isinstance(pooler, nn.Module) and parameter_count(pooler) else []
    return outermost(model, [*outside, *inside])


def fresh_modules(model: PreTrainedModel) -> list[str]:
    """Return the modules trained with every method by default: the head, if the checkpoint has none.

    The output layer of a language model comes with its checkpoint, and stays frozen.
    """
    outputs = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [] if outputs is not None else head_modules(model)


def outermost(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the suffixes of module names, without modules inside another named one.

    peft copies each module of ``modules_to_save`` whole, and cannot load a copy within a copy.
    """
    found = {end: ending(model, [end]) for end in names}
    every = {name for owners in found.values() for name in owners}

    def is_inside(name: str) -> bool:
        return any(name.startswith(f"{outer}.") for outer in every)

    return [end for end, owners in found.items() if not owners or not all(is_inside(name) for name in owners)]


def ending(model: nn.Module, ends: Sequence[str]) -> list[str]:
    """Return the full names of the modules whose dotted names end in one of ``ends``."""
    return [name for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in ends)]


def _is_projection(module: nn.Module) -> bool:
    """Return whether a child of a model is a head: linear layers, not a stack of blocks."""
    owners = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    blocks = any(isinstance(part, nn.ModuleList) for part in module.modules())
    linear = any(isinstance(part, nn.Linear) for part in owners)
    return linear and not blocks and all(isinstance(part, (nn.Linear, nn.LayerNorm)) for part in owners)


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters, counting the unpacked size of packed ones."""
    return sum(_entries(parameter) for parameter in module.parameters())


def _entries(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two of four bits into a byte
    return parameter.numel() if state is None else math.prod(state.shape)


def head_parameters(model: PreTrainedModel, head: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters under the modules whose dotted names end in one of `head`."""
    owners = [model.get_submodule(name) for name in ending(model, head)]
    return list({id(parameter): parameter for owner in owners for parameter in owner.parameters()}.values())
