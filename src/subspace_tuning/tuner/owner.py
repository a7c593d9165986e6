"""A module of which single parts are adapted, each in a layer of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import SubspaceError
from .calling import Args, Kwargs, forward_slot, replaced, the_input
from .kinds import kind_of
from .layer import SubspaceLayer, layer_class
from .part import Columns, Part


class PartedModule(nn.Module, BaseTunerLayer):
    """Takes the place of a module some of whose parameters are adapted, such as the experts of a mixture.

    The layers have the names of the parameters, so that their tensors do, too:
    ``experts.gate_up_proj.subspace_params.<adapter>.A``. They merge, switch and count like every other layer.
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.train(base_layer.training)

    def add(self, name: str, layer: SubspaceLayer) -> None:
        """Take in the layer of a part. The base layer stays last, so that layers see it move or load."""
        base = self._modules.pop("base_layer")
        self._modules[name] = layer
        self._modules["base_layer"] = base

    @property
    def layers(self) -> dict[str, SubspaceLayer]:
        """The layers of the parts, by name."""
        return {name: layer for name, layer in self._modules.items() if isinstance(layer, SubspaceLayer)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output where it reads phi(W) in place of each adapted parameter."""
        applied = self._applied()
        if not applied:
            return self.base_layer(*args, **kwargs)
        return self._with({name: layer.weight for name, layer in applied.items()}, args, kwargs)

    def _applied(self) -> dict[str, SubspaceLayer]:
        """Return the layers that a call applies; what was merged before it was disabled is unmerged."""
        if any(layer.disable_adapters and layer.merged for layer in self.layers.values()):
            self._each("unmerge")
        return {name: layer for name, layer in self.layers.items() if layer.applied}

    def _with(self, weights: dict[str, Tensor], args: Args, kwargs: Kwargs) -> Any:
        """Return the module's output where it reads these tensors in place of its parameters."""
        base, slot = self.base_layer, forward_slot(self.base_layer)
        if torch.compiler.is_compiling():  # the compiler knows the module, and no copy of it; and no other thread looks
            return torch.func.functional_call(base, weights, args, kwargs)
        view = _reading(base, weights)
        if slot == "forward":
            return view(*args, **kwargs)
        if slot is None:
            raise SubspaceError(
                f"the forward of this {type(base).__name__} was replaced, and what replaced it would read the frozen "
                "parameters: put it back, or leave them out of target_parameters"
            )
        with replaced(base, **{slot: partial(type(base).forward, view)}):
            return base(*args, **kwargs)

    def _each(self, action: str, *args: Any) -> None:
        for layer in self.layers.values():
            getattr(layer, action)(*args)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the module, into which the adapters are merged if ``merge``."""
        if merge:
            self._each("merge", safe_merge, adapter_names)
        return self.base_layer

    # peft asks every layer. These answer for the parts, which do the work when they are asked themselves.

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave it to the parts, which peft asks as well."""

    def unmerge(self) -> None:
        """Leave it to the parts, which peft asks as well."""

    @property
    def merged_adapters(self) -> list[str]:  # type: ignore[override]
        """The merged adapters of the parts."""
        return list(dict.fromkeys(name for layer in self.layers.values() for name in layer.merged_adapters))

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapters of the parts."""
        return next((layer.active_adapter for layer in self.layers.values()), [])

    @property
    def disable_adapters(self) -> bool:
        """Whether the adapters are disabled."""
        return any(layer.disable_adapters for layer in self.layers.values())

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the module itself, such as the number of experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class PartedLinear(PartedModule):
    """Takes the place of a linear layer that is several projections in one, of which some are adapted.

    Their outputs are computed by themselves and put in place of the layer's own. A layer with a forward of its own runs
    with phi(W) in place of W.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output with phi(W) in the columns of each adapted part."""
        applied, base = self._applied(), self.base_layer
        kind = kind_of(base)
        if not applied or kind is None:
            return base(*args, **kwargs)
        if not kind.knows(base) or forward_slot(base) is None:
            weight: Tensor = base.weight  # type: ignore[assignment]
            for layer in applied.values():
                weight = _columns(layer).put(weight, layer.weight, _columns(layer).outputs)
            return self._with({"weight": weight}, args, kwargs)
        y = base(*args, **kwargs)
        for layer in applied.values():
            y = _columns(layer).put(y, layer(the_input(args, kwargs)))
        return y


def _columns(layer: SubspaceLayer) -> Columns:
    part = layer.get_base_layer()
    assert isinstance(part, Columns)
    return part


def layer_of(model: nn.Module, name: str, part: Part) -> SubspaceLayer:
    """Return the layer of a part, given by its owner's name and its own; if there is none, put one into the model."""
    path, _, own = name.rpartition(".")
    above, _, leaf = path.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, SubspaceLayer):
        raise SubspaceError(f"{path} is adapted as a whole by another adapter, so none of its parts can be")
    if not isinstance(owner, PartedModule):
        owner = PartedLinear(owner) if isinstance(part, Columns) else PartedModule(owner)
        setattr(model.get_submodule(above), leaf, owner)
    if own not in owner.layers:
        owner.add(own, layer_class(part)(part))
    return owner.layers[own]


def _reading(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a shallow copy of a module that finds these tensors in place of its parameters.

    The module itself stays as it is, so other threads see nothing, and nothing has to be undone after an exception.
    """
    view: nn.Module = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    view.__dict__.pop("forward", None)  # the class's own, bound to the module
    view.__dict__.update(tensors)
    return view
