"""Several adapters in one batch: each layer gets the name of every row's adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import SubspaceError
from .calling import BASE
from .layer import SubspaceLayer
from .part import Part
from .walking import Outside, layers_of


@contextmanager
def rows_named(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[None]:
    """Pass the name of every row's adapter to the layers of a model called in the body.

    Raises SubspaceError if one of these adapters is on parts of modules, which are the same for all rows.
    """
    for name, layer in layers_of(model):
        if isinstance(layer.get_base_layer(), Part) and layer.adapters.keys() & set(adapter_names):
            raise SubspaceError(
                f"adapter_names gives every row its own adapter, and {name} is a parameter or a part of a module, "
                "which all rows share: use set_adapter"
            )
    hook = partial(_pass_names, adapter_names=list(adapter_names))
    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module in Outside(model).modules()
        if isinstance(module, (SubspaceLayer, AuxiliaryTrainingWrapper))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass a layer the adapters of its rows; in beam search every row of the batch occurs several times."""
    rows = len(args[0]) if args else len(adapter_names)
    times = rows // len(adapter_names) if rows % len(adapter_names) == 0 else 1
    if isinstance(module, AuxiliaryTrainingWrapper):  # an adapter that does not train the module uses the original
        adapter_names = [name if name in module._adapters else BASE for name in adapter_names]
    kwargs["adapter_names"] = [name for name in adapter_names for _ in range(times)]
    return args, kwargs
