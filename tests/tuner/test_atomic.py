"""An adapter comes whole or not at all, by every door and whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer

from .conftest import Builder, Variant

Enter = Callable[[Any, SubspaceConfig, str], Any]

ALONE: dict[str, Enter] = {
    "get_peft_model": lambda model, config, name: get_peft_model(model, config, adapter_name=name),
    "inject_adapter_in_model": lambda model, config, name: inject_adapter_in_model(config, model, name),
    "transformers": lambda model, config, name: model.add_adapter(config, name),
}
BESIDE: dict[str, Enter] = {
    "add_adapter": lambda model, config, name: model.add_adapter(name, config),
    "inject_adapter": lambda model, config, name: inject_adapter_in_model(config, model.base_model.model, name),
}
every_failure = pytest.mark.parametrize("failure", [SubspaceError, KeyError, RuntimeError, KeyboardInterrupt])
ILLEGAL = ["v1.5", "", ".", "a.", "keys", "values", "type", "training", "update", "forward", "_modules", "__base__"]


def everything(model: nn.Module) -> dict[str, Any]:
    """Return all that an adapter could leave behind, tensors and modules by their identity."""
    return {
        "modules": dict(model.named_modules()),
        "children": {name: dict(module._modules) for name, module in model.named_modules()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "tensors": {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: dict(module._forward_hooks) for name, module in model.named_modules()},
        "adapters": dict(getattr(model, "peft_config", {})),
        "active": {
            name: (list(module.active_adapters), dict(module.scaling), set(module.unfrozen))
            for name, module in model.named_modules()
            if isinstance(module, SubspaceLayer)
        },
    }


def breaking(monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], after: int = 3) -> None:
    """Make the layer fail that gets its adapter after so many others."""
    original, calls = SubspaceLayer.update_layer, [0]

    def update_layer(self: SubspaceLayer, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        original(self, *args, **kwargs)
        if calls[0] > after:
            raise failure("in the midst")

    monkeypatch.setattr(SubspaceLayer, "update_layer", update_layer)


@every_failure
@pytest.mark.parametrize("door", ALONE)
def test_a_first_adapter(
    bert: Builder, door: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = bert().train()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    config = SubspaceConfig(method="adalora", r=2, modules_to_save=["classifier"])
    fields, before = dict(vars(config)), everything(model)
    breaking(monkeypatch, failure)
    with pytest.raises(failure):
        ALONE[door](model, config, "own")
    monkeypatch.undo()
    assert everything(model) == before
    assert {key: value for key, value in vars(config).items() if key != "base_model_name_or_path"} == {
        key: value for key, value in fields.items() if key != "base_model_name_or_path"
    }
    handle.remove()
    assert not [hook for hook in model._forward_hooks.values() if hook.__name__ == "<lambda>"]
    ALONE[door](model, config, "own")  # nothing is in the way of a second try
    assert any(isinstance(module, SubspaceLayer) for module in model.modules())


def test_a_failure_at_any_layer(bert: Builder, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every method, whichever layer it is that fails: as many layers are adapted before it as there are."""
    whole: Any = get_peft_model(bert(), variant.config())
    layers = sum(isinstance(module, SubspaceLayer) for module in whole.modules())
    assert layers > 1
    for after in range(layers):
        model: Any = bert()
        before, tensors = everything(model), {name: value.clone() for name, value in model.state_dict().items()}
        with monkeypatch.context() as patch:
            breaking(patch, RuntimeError, after)
            with pytest.raises(RuntimeError, match="in the midst"):
                get_peft_model(model, variant.config())
        assert everything(model) == before
        assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


@every_failure
@pytest.mark.parametrize("door", BESIDE)
def test_a_further_adapter(
    bert: Builder, door: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = get_peft_model(bert(), SubspaceConfig(method="svdiff", target_modules=["query"]))
    before = everything(model)
    breaking(monkeypatch, failure)
    with pytest.raises(failure):
        BESIDE[door](model, SubspaceConfig(method="lora", r=2, target_modules=["query", "value"]), "own")
    assert everything(model) == before
    assert list(model.peft_config) == ["default"] and model.active_adapters == ["default"]


def test_a_replaced_adapter_stays(bert: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = get_peft_model(bert(), SubspaceConfig(method="ssb", target_modules=["query", "value"]))
    before = everything(model)
    breaking(monkeypatch, RuntimeError)
    with pytest.warns(UserWarning, match="peft_config"), pytest.raises(RuntimeError):
        inject_adapter_in_model(SubspaceConfig(method="lora", r=2), model.base_model.model, "default")
    assert everything(model) == before
    assert model.peft_config["default"].method == "ssb"


@pytest.mark.parametrize("name", ILLEGAL)
def test_a_name_that_torch_refuses(bert: Builder, name: str) -> None:
    for door in ALONE.values():
        model = bert()
        before = everything(model)
        with pytest.raises(SubspaceError, match="an adapter cannot be called") as caught:
            door(model, SubspaceConfig(method="ssb"), name or ".")
        assert "\n" not in str(caught.value)
        assert everything(model) == before
    wrapped: Any = get_peft_model(bert(), SubspaceConfig(method="ssb"))
    before = everything(wrapped)
    for door in BESIDE.values():
        with pytest.raises(SubspaceError, match="an adapter cannot be called"):
            door(wrapped, SubspaceConfig(method="ssb"), name)
        assert everything(wrapped) == before
