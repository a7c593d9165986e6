"""Walks over a model that skip the contents of its adapters.

torch's own walks visit every tensor of every adapter. With hundreds of adapters those are nearly all of a model's
tensors. Code that needs only the layers, or a few of the adapters, uses the walks in this file. peft, which walks over
the whole model several times whenever an adapter is added, deleted or activated, is given an ``Outside`` of the model
instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .layer import SubspaceLayer
from .owner import PartedModule

if TYPE_CHECKING:  # so that it can be passed as a model
    _Model = nn.Module
else:
    _Model = object

_ADAPTED = (SubspaceLayer, PartedModule)


class Outside(_Model):
    """A model seen from outside its adapters: its walks skip the tensors of all adapters except the named ones.

    It is not a module, and the model does not know about it. All other attributes are the model's.
    """

    modules = nn.Module.modules
    named_parameters = nn.Module.named_parameters
    parameters = nn.Module.parameters
    named_buffers = nn.Module.named_buffers
    _named_members = nn.Module._named_members

    def __init__(self, model: nn.Module, adapters: Collection[str] = ()) -> None:
        self._model, self._adapters = model, adapters

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules and their names, like ``nn.Module.named_modules``."""
        return _walk(self._model, self._adapters, set() if memo is None else memo, prefix, remove_duplicate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def layers_of(model: nn.Module) -> Iterator[tuple[str, SubspaceLayer]]:
    """Yield the adapted layers of a model by name."""
    for name, module in _walk(model, (), set(), "", True):
        if isinstance(module, SubspaceLayer):
            yield name, module


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the model proper: an adapted one by its own name, nothing of modules saved whole."""
    wrapper: str | None = None
    for name, module in Outside(model).named_modules():
        if wrapper is not None and name.startswith(wrapper):
            continue
        wrapper = f"{name}." if isinstance(module, (*_ADAPTED, AuxiliaryTrainingWrapper)) else None
        yield name, module.get_base_layer() if isinstance(module, _ADAPTED) else module


def _walk(
    module: nn.Module, adapters: Collection[str], memo: set[nn.Module], prefix: str, remove_duplicate: bool
) -> Iterator[tuple[str, nn.Module]]:
    if module in memo:
        return
    if remove_duplicate:
        memo.add(module)
    yield prefix, module
    adapted = isinstance(module, SubspaceLayer)
    for name, child in module._modules.items():
        path = f"{prefix}.{name}" if prefix else name
        if child is None:
            continue
        if not adapted or name == "base_layer":
            yield from _walk(child, adapters, memo, path, remove_duplicate)
            continue
        yield path, child
        for adapter in adapters:
            if (held := child._modules.get(adapter)) is not None:
                yield from held.named_modules(memo, f"{path}.{adapter}", remove_duplicate)
