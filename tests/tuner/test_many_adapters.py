"""Many adapters in one model: what is done with one of them costs the same however many others there are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import Builder, logits

FEW, MANY = 2, 60
Batch = dict[str, Tensor]


def config(method: str, **fields: Any) -> SubspaceConfig:
    return SubspaceConfig(method=method, r=2, target_modules=["query", "dense"], init_weights=False, **fields)


def crowd(build: Builder, method: str, count: int, **fields: Any) -> Any:
    """A model with so many adapters, of which the first is active."""
    model: Any = get_peft_model(build(), config(method, **fields))
    grow(model, method, count, **fields)
    return model.eval()


def grow(model: Any, method: str, count: int, **fields: Any) -> None:
    for number in range(len(model.peft_config), count):
        model.add_adapter(f"a{number}", config(method, **fields))


def calls(action: Callable[[], object]) -> int:
    """How many functions are called, in Python and in C: unlike time, the same every time."""
    count = 0

    def tally(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(tally)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def layers(model: Any) -> list[SubspaceLayer]:
    return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


def trained(model: Any) -> set[str]:
    """The names of the adapters that train; they must do so in every layer that has them, with all their factors."""
    by_adapter: dict[str, set[bool]] = {}
    for layer in layers(model):
        for name, factors in layer.subspace_params.items():
            by_adapter.setdefault(name, set()).update(factor.requires_grad for factor in factors.parameters())
    assert all(len(flags) == 1 for flags in by_adapter.values())
    others = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".subspace_params." in name for name in others)
    return {name for name, flags in by_adapter.items() if flags == {True}}


def one_round(model: Any, method: str) -> dict[str, int]:
    """Count what it takes to add one more adapter, to switch to it and back, and to delete it, active and not."""
    name = f"a{len(model.peft_config)}"
    counts = {
        "add": calls(lambda: model.add_adapter(name, config(method))),
        "switch": calls(lambda: model.set_adapter(name)),
        "switch back": calls(lambda: model.set_adapter("default")),
        "delete": calls(lambda: model.delete_adapter(name)),
    }
    model.add_adapter(name, config(method))
    model.set_adapter(name)
    with pytest.warns(UserWarning, match="Setting active adapter to a1"):
        counts["delete the active one"] = calls(lambda: model.delete_adapter(name))
    model.set_adapter("default")
    return counts


@pytest.mark.parametrize("method", ["lora", "ssb", "dora"])
def test_adding_switching_and_deleting_do_not_grow_with_the_number(bert: Builder, method: str) -> None:
    model = crowd(bert, method, FEW)
    one_round(model, method)  # plans and decompositions are made once and kept
    few = one_round(model, method)
    grow(model, method, MANY)
    many = one_round(model, method)
    assert {step: many[step] / few[step] for step in few if many[step] > 1.5 * few[step]} == {}


def test_many_methods_with_formulas_of_their_own(bert: Builder) -> None:
    def add(number: int) -> None:
        own = SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=2, target_modules=["query"])
        model.add_adapter(f"a{number}", own)

    model = crowd(bert, "lora", 1)
    counts = [calls(lambda number=number: add(number)) for number in range(1, MANY)]  # type: ignore[misc]
    assert counts[-1] <= 1.5 * counts[1]


def test_the_forward_pass_meets_only_the_adapters_in_use(bert: Builder, batch: Batch) -> None:
    labels, rows = torch.tensor([0, 1, 2, 0]), ["default", "a1", "__base__", "a1"]

    def counted() -> list[int]:
        found = []
        for training, inputs in ((False, {}), (True, {}), (True, {"labels": labels}), (False, {"adapter_names": rows})):
            model.train(training)
            found.append(calls(lambda: model(**batch, **inputs)))  # noqa: B023
        return found  # the third looks for the adapters whose penalty joins the loss

    model = crowd(bert, "lora", FEW, pattern="orthogonal")
    counted()
    few = counted()
    grow(model, "lora", MANY, pattern="orthogonal")
    counted()  # the first call after a change looks everything up
    assert counted() == few


def test_the_flags_after_switching(bert: Builder) -> None:
    model = crowd(bert, "ssb", 12)
    assert trained(model) == {"default"}
    for name in ("a3", "a11", "default", "a3"):
        model.set_adapter(name)
        assert model.active_adapters == [name]
        assert all(layer.active_adapters == [name] for layer in layers(model))
        assert trained(model) == {name}
    model.base_model.set_adapter(["a1", "a2"])
    assert trained(model) == {"a1", "a2"}
    model.set_adapter("a5", inference_mode=True)
    assert trained(model) == set()
    model.set_adapter("a6")
    with model.disable_adapter():
        assert trained(model) == set()
    assert trained(model) == {"a6"}


def test_switching_freezes_what_was_unfrozen_otherwise(bert: Builder) -> None:
    model = crowd(bert, "lora", 12)
    model.set_requires_grad(["a3", "a4"])
    assert trained(model) == {"default", "a3", "a4"}
    model.add_adapter("new", config("ssb"))  # which leaves the others as they are
    assert trained(model) == {"default", "a3", "a4"}
    model.set_adapter("a1")
    assert trained(model) == {"a1"}
    for name, parameter in model.named_parameters():
        if ".subspace_params.a7." in name:
            parameter.requires_grad = True
    model.add_adapter("newer", config("ssb"))
    assert trained(model) == {"a1", "a7"}
    model.set_adapter("a2")
    assert trained(model) == {"a2"}
    held = [parameter for name, parameter in model.named_parameters() if ".subspace_params.a9." in name]
    model.set_adapter("a1")
    held[0].requires_grad_(True)  # one factor, by who has held it since before
    model.set_adapter("a2")
    assert trained(model) == {"a2"}


def test_the_flags_after_deleting(bert: Builder, batch: Batch) -> None:
    model = crowd(bert, "lora", 12)
    model.set_adapter("a5")
    expected = logits(model, batch)
    model.delete_adapter("a4")
    assert model.active_adapters == ["a5"]
    assert trained(model) == {"a5"}
    assert torch.equal(logits(model, batch), expected)
    with pytest.warns(UserWarning, match="Setting active adapter to a1"):
        model.delete_adapter("a5")
    assert model.active_adapters == ["a1"]
    assert all(layer.active_adapters == ["a1"] for layer in layers(model))
    assert trained(model) == {"a1"}
    assert {name for layer in layers(model) for name in layer.subspace_params} == model.peft_config.keys()
    assert not any(part in name for name in model.state_dict() for part in (".a4.", ".a5."))


def test_a_walk_over_the_model_meets_every_adapter(bert: Builder) -> None:
    model = crowd(bert, "ssb", 12)
    model.set_adapter("a5")
    names = {
        name.split(".subspace_params.")[1].split(".")[0] for name, _ in model.named_parameters() if "_params" in name
    }
    assert names == model.peft_config.keys()
    assert set(model.modules()) == set(model.modules(remove_duplicate=False))
