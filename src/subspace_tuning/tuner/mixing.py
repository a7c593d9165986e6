"""Several adapters in one batch: each layer gets the name of every row's adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from ..errors import SubspaceError
from .calling import BASE, by_adapter, chosen_rows
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
    names = list(adapter_names)
    passing, choosing = partial(_pass_names, adapter_names=names), partial(_choose_heads, adapter_names=names)
    handles = [
        module.register_forward_hook(choosing, with_kwargs=True)
        if _is_composite(module)
        else module.register_forward_pre_hook(passing, with_kwargs=True)
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
    """Pass a layer the adapters of its rows."""
    if isinstance(module, AuxiliaryTrainingWrapper):  # an adapter that does not train the module uses the original
        adapter_names = [name if name in module._adapters else BASE for name in adapter_names]
    kwargs["adapter_names"] = _repeated(adapter_names, args)
    return args, kwargs


def _repeated(adapter_names: list[str], args: tuple[Any, ...]) -> list[str]:
    """Return the adapters of a layer's rows; in beam search every row of the batch occurs several times."""
    rows = len(args[0]) if args else len(adapter_names)
    times = rows // len(adapter_names) if rows % len(adapter_names) == 0 else 1
    return [name for name in adapter_names for _ in range(times)]


def _is_composite(module: nn.Module) -> bool:
    """Return whether a module is trained whole and has modules of its own, whose rows peft does not mix."""
    return isinstance(module, ModulesToSaveWrapper) and any(True for _ in module.original_module.children())


def _choose_heads(
    module: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, adapter_names: list[str]
) -> Tensor:
    """Return the output for rows that each have a head of their own, in place of the active head's output."""
    if not args or not isinstance(output, Tensor):
        raise SubspaceError(
            f"adapter_names gives every row its own adapter, and a trained {type(module.original_module).__name__} "
            "does not map a tensor to a tensor: use set_adapter"
        )
    x, *others = args

    def of_one(names: list[str], rows: list[int]) -> Tensor:
        heads: Any = module.modules_to_save
        head = heads[names[0]] if names and names[0] in heads else module.original_module
        result: Tensor = head(chosen_rows(x, rows), *others, **kwargs)
        return result

    return by_adapter(_repeated(adapter_names, args), of_one)
