"""Several adapters of different methods in one model: adding, choosing, summing, disabling, deleting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import EVERY, Builder, Variant

Batch = dict[str, Tensor]

FIRST, SECOND, THIRD = "first", "second", "third"
TARGETS = ["query", "value", "dense"]


def partner(variant: Variant, **fields: Any) -> SubspaceConfig:
    """Another method than the one under test, on other modules."""
    other = "ssb" if variant.name == "lora" else "lora"
    return SubspaceConfig(method=other, r=3, init_weights=False, target_modules=["key", "value"], **fields)


def alone(build: Builder, config: SubspaceConfig, seed: int) -> Any:
    torch.manual_seed(seed)
    return get_peft_model(build(), config).eval()


def pair(build: Builder, variant: Variant, **fields: Any) -> Any:
    """A model with the variant's adapter and another, each with the factors that it has alone."""
    model = alone(build, variant.config(init_weights=False, **fields), seed=1)
    model.add_adapter(SECOND, partner(variant))
    copy_adapter(alone(build, partner(variant), seed=2), model, SECOND)
    return model


def copy_adapter(source: nn.Module, target: nn.Module, name: str) -> None:
    own = dict(target.named_parameters())
    for key, parameter in source.named_parameters():
        if "subspace_params" in key:
            own[key.replace("subspace_params.default", f"subspace_params.{name}")].data.copy_(parameter)


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def adapters_of(model: nn.Module) -> set[str]:
    return {name for layer in layers(model) for name in layer.subspace_params}


def layers(model: nn.Module) -> list[SubspaceLayer]:
    return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


def trained(model: nn.Module) -> set[str]:
    """The adapters whose factors are trained."""
    return {
        name.split("subspace_params.")[1].split(".")[0]
        for name, parameter in model.named_parameters()
        if "subspace_params." in name and parameter.requires_grad
    }


def test_each_adapter_gives_what_it_gives_alone(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = pair(bert, variant)
    own, other = alone(bert, variant.config(init_weights=False), 1), alone(bert, partner(variant), 2)
    assert not torch.equal(logits(own, batch), logits(other, batch))
    for name, expected in ((SECOND, other), ("default", own), (SECOND, other)):
        model.set_adapter(name)
        assert torch.equal(logits(model, batch), logits(expected, batch))
        assert model.active_adapters == [name]


def test_disabled_adapters_leave_the_base(bert: Builder, variant: Variant, batch: Batch) -> None:
    model, base = pair(bert, variant), bert()
    expected = logits(base, batch)
    adapted = logits(model, batch)
    assert not torch.equal(adapted, expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)
        assert trained(model) == set()
    assert torch.equal(logits(model, batch), adapted)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model, batch), expected)
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits(model, batch), adapted)
    assert trained(model) == {"default"}


def test_several_active_adapters_add_their_deltas(bert: Builder, variant: Variant, batch: Batch) -> None:
    where = {"target_modules": ["value"]} if variant.name == "houlsby" else {}
    model = pair(bert, variant, **where)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.value
    if not layer.subspace_params.keys() >= {"default", SECOND}:
        pytest.fail("both adapters should be on the value projection")
    x = torch.randn(5, 32)
    frozen = layer.base_layer(x)
    single = []
    for name in ("default", SECOND):
        layer.set_adapter(name)
        single.append(layer(x))
    outputs = []
    for order in (["default", SECOND], [SECOND, "default"]):
        model.base_model.set_adapter(order)
        outputs.append((layer(x), logits(model, batch)))
    torch.testing.assert_close(outputs[0][0], frozen + (single[0] - frozen) + (single[1] - frozen))
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    torch.testing.assert_close(outputs[0][1], outputs[1][1])
    assert trained(model) == {"default", SECOND}


def test_an_inactive_adapter_is_not_trained(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = pair(bert, variant).train()
    assert trained(model) == {"default"}
    model.set_adapter(SECOND)
    assert trained(model) == {SECOND}
    model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(f"subspace_params.{SECOND}" in name for name in with_gradient)
    model.set_adapter("default", inference_mode=True)
    assert trained(model) == set()
    model.set_requires_grad("default")
    assert trained(model) == {"default"}


def test_deleting_an_inactive_adapter_changes_nothing_else(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = pair(bert, variant)
    expected = logits(model, batch)
    model.delete_adapter(SECOND)
    assert torch.equal(logits(model, batch), expected)
    assert adapters_of(model) == {"default"}
    assert not any(SECOND in name for name in model.state_dict())
    assert list(model.peft_config) == ["default"]


def test_deleting_the_active_adapter_activates_the_other(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = pair(bert, variant)
    expected = logits(alone(bert, partner(variant), 2), batch)
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("default")
    assert model.active_adapters == [SECOND]
    assert torch.equal(logits(model, batch), expected)
    assert adapters_of(model) == {SECOND}


def test_layers_that_come_later_are_in_the_mode_of_the_model(bert: Builder) -> None:
    model = alone(bert, SubspaceConfig(method="ssb", target_modules=["query"]), seed=1)
    model.add_adapter(SECOND, SubspaceConfig(method="lora", r=3, dropout=0.5, target_modules=["key"]))
    assert not any(layer.training for layer in layers(model))


def test_after_a_deletion_all_layers_agree_on_the_active_adapter(bert: Builder, batch: Batch) -> None:
    model = alone(bert, SubspaceConfig(method="ssb", target_modules=["key"]), seed=1)
    for name, targets in (("b", ["query", "key"]), ("a", ["value"])):
        model.add_adapter(name, SubspaceConfig(method="lora", r=3, target_modules=targets, init_weights=False))
    model.delete_adapter("default")
    assert model.active_adapters == ["a"]
    assert all(layer.active_adapters == ["a"] for layer in layers(model))
    assert trained(model) == {"a"}


def test_a_deleted_adapter_can_come_back(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = pair(bert, variant)
    model.set_adapter(SECOND)
    model.delete_adapter("default")
    torch.manual_seed(1)
    model.add_adapter("default", variant.config(init_weights=False))
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), logits(alone(bert, variant.config(init_weights=False), 1), batch))


def test_a_second_adapter_on_all_linear_layers(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = alone(bert, variant.config(), seed=1)
    model.add_adapter(SECOND, SubspaceConfig(method="lora", r=3, init_weights=False, target_modules="all-linear"))
    base = {name for name, module in bert().named_modules() if isinstance(module, nn.Linear)}
    with_second = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and SECOND in module.subspace_params
    }
    assert with_second == base
    nested = [name for name, module in model.named_modules() if isinstance(module, SubspaceLayer) and ".base_" in name]
    assert nested == ["base_model.model." + name for name in nested]
    before = logits(model, batch)
    model.set_adapter(SECOND)
    assert not torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("first", ["ssb", "lora"])
def test_a_default_placement_does_not_depend_on_what_is_there_already(
    bert: Builder, variant: Variant, first: str
) -> None:
    model = alone(bert, SubspaceConfig(method=first), seed=1)
    model.add_adapter(SECOND, variant.config())
    fresh = alone(bert, variant.config(), seed=1)
    placed = {
        name for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and SECOND in module.subspace_params
    }  # fmt: skip
    assert placed == {name for name, module in fresh.named_modules() if isinstance(module, SubspaceLayer)}


def test_a_name_is_taken_once(bert: Builder, batch: Batch) -> None:
    model = alone(bert, SubspaceConfig(method="ssb"), seed=1)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", SubspaceConfig(method="lora"))
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter("other")
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("other")
    assert adapters_of(model) == {"default"}


def test_all_methods_at_once(bert: Builder, batch: Batch) -> None:
    model = alone(bert, SubspaceConfig(method="ssb", init_weights=False, target_modules=TARGETS), seed=0)
    names = [variant.name for variant in EVERY if variant.name != "formula"]
    for name in names:
        model.add_adapter(f"on_{name}", Variant(name).config(r=3, init_weights=False, target_modules=TARGETS))
    outputs = []
    for name in names:
        model.set_adapter(f"on_{name}")
        outputs.append(logits(model, batch))
    assert all(not torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
    status = model.get_model_status()
    assert status.num_adapter_layers == len(layers(model))
    assert status.active_adapters == [f"on_{names[-1]}"]
    model.base_model.set_adapter(["default", *(f"on_{name}" for name in names)])
    assert torch.isfinite(logits(model, batch)).all()
