"""Merging: phi(W) written into the base weights, and taken out again bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer

from .conftest import Builder, Variant

Batch = dict[str, Tensor]

ROUNDING = {"rtol": 1e-4, "atol": 2e-5}
TARGETS = ["query", "value", "intermediate.dense"]


def adapted(build: Builder, variant: Variant, **fields: Any) -> Any:
    return get_peft_model(build(), variant.config(init_weights=False, **fields)).eval()


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "subspace_" not in name}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def layers(model: nn.Module) -> list[SubspaceLayer]:
    return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_merging_keeps_the_output_and_unmerging_the_weights(
    request: pytest.FixtureRequest, architecture: str, linear: Variant, batch: Batch
) -> None:
    model = adapted(request.getfixturevalue(architecture), linear)
    expected, before = logits(model, batch), base_weights(model)
    model.merge_adapter()
    assert all(layer.merged for layer in layers(model))
    assert not same(base_weights(model), before)
    torch.testing.assert_close(logits(model, batch), expected, **ROUNDING)
    model.unmerge_adapter()
    assert same(base_weights(model), before)
    assert torch.equal(logits(model, batch), expected)


def test_merging_twice_and_out_of_order(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear, target_modules=TARGETS)
    model.add_adapter("other", SubspaceConfig(method="lora", r=3, init_weights=False, target_modules=TARGETS))
    before = base_weights(model)
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), expected, **ROUNDING)
    together = base_weights(model)
    model.unmerge_adapter()
    model.merge_adapter(["other"])
    with pytest.warns(UserWarning, match="additionally merging default"):
        model.merge_adapter(["default"])
    assert all(torch.allclose(tensor, together[name], atol=1e-6) for name, tensor in base_weights(model).items())
    with pytest.warns(UserWarning, match="nothing to do"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert same(base_weights(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(bert(), batch))


def test_disabling_or_switching_takes_a_merged_adapter_out(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear, target_modules=TARGETS)
    model.add_adapter("other", SubspaceConfig(method="lora", r=3, init_weights=False, target_modules=TARGETS))
    before, expected = base_weights(model), logits(model, batch)
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(bert(), batch))
    assert same(base_weights(model), before)
    assert torch.equal(logits(model, batch), expected)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("other")
    assert same(base_weights(model), before)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), expected)


def test_a_base_weight_that_moved_is_merged_as_it_is_now(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear, target_modules=["query"])
    model.merge_adapter()
    model.unmerge_adapter()
    for layer in layers(model):
        assert layer.frozen_bias is not None
        layer.frozen_weight.data = 0.5 * layer.frozen_weight.data
        layer.frozen_bias.data = 0.5 + layer.frozen_bias.data
    before = base_weights(model)
    expected = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), expected, **ROUNDING)
    model.unmerge_adapter()
    assert same(base_weights(model), before)


def test_a_merged_model_is_cast_and_unmerged(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear)
    before = base_weights(model)
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name].to(tensor.dtype)) for name, tensor in base_weights(model).items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_merge_and_unload_gives_a_plain_model(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear)
    expected = logits(model, batch)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(bert())
    assert not layers(plain)
    assert plain.state_dict().keys() == bert().state_dict().keys()
    assert not hasattr(plain, "peft_config")
    torch.testing.assert_close(logits(plain, batch), expected, **ROUNDING)


def test_merge_and_unload_of_chosen_adapters(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear, target_modules=TARGETS)
    model.add_adapter("other", SubspaceConfig(method="lora", r=3, init_weights=False, target_modules=["key"]))
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model, batch)
    plain = model.merge_and_unload(adapter_names=["default", "other"])
    torch.testing.assert_close(logits(plain, batch), expected, **ROUNDING)


def test_unload_gives_the_base_back(bert: Builder, variant: Variant, batch: Batch, unchanged: Any) -> None:
    base = bert().requires_grad_(False)
    check, expected = unchanged(base), logits(base, batch)
    model: Any = get_peft_model(base, variant.config(init_weights=False))
    assert not torch.equal(logits(model, batch), expected)
    assert model.unload() is base
    check()
    assert torch.equal(logits(base, batch), expected)


def test_a_saved_module_stays_after_merging(bert: Builder, linear: Variant, batch: Batch) -> None:
    model = adapted(bert, linear, modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
    expected = logits(model, batch)
    plain = model.merge_and_unload()
    assert isinstance(plain.classifier, nn.Linear)
    torch.testing.assert_close(logits(plain, batch), expected, **ROUNDING)


@pytest.mark.parametrize(("value", "unload"), [(float("nan"), True), (float("inf"), False)])
def test_a_safe_merge_refuses_what_is_not_finite(
    bert: Builder, linear: Variant, value: float, unload: bool, batch: Batch
) -> None:
    model = adapted(bert, linear)
    before, expected = base_weights(model), logits(model, batch)
    last = next(iter(reversed(layers(model))))
    broken = last.subspace_params["default"][linear.method.formula.trainable[-1]]
    kept = broken.detach().clone()
    broken.data.view(-1)[0] = value
    with pytest.raises(
        SubspaceError, match=r"^NaNs detected in the merged (weights|bias). The adapter default seems to be broken"
    ):
        model.merge_and_unload(safe_merge=True) if unload else model.merge_adapter(safe_merge=True)
    broken.data.copy_(kept)
    assert same(base_weights(model), before)
    assert not any(layer.merged for layer in layers(model))
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
def test_a_method_without_a_dense_form_refuses_before_anything_changes(
    bert: Builder, call: str, batch: Batch, unchanged: Any
) -> None:
    model: Any = get_peft_model(bert(), SubspaceConfig(method="ssb", init_weights=False, target_modules=TARGETS))
    last = SubspaceConfig(method="parallel_adapter", r=3, init_weights=False, target_modules=["classifier"])
    model.add_adapter("bent", last)
    model.base_model.set_adapter(["default", "bent"])
    model.eval()
    check, expected = unchanged(model), logits(model, batch)
    with pytest.raises(SubspaceError, match=r"'parallel_adapter' cannot be merged: .* nonlinearity"):
        getattr(model, call)()
    check()
    assert torch.equal(logits(model, batch), expected)
    model.merge_adapter(["default"])
    assert [layer.merged_adapters for layer in layers(model)] == [["default"]] * 6 + [[]]


def test_a_model_saved_while_merged_keeps_its_adapter(
    bert: Builder, linear: Variant, batch: Batch, tmp_path: Any
) -> None:
    model = adapted(bert, linear)
    expected = logits(model, batch)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(), tmp_path).eval()
    assert torch.equal(logits(again, batch), expected)


def test_a_convolutional_net_merges(conv_net: Builder, linear: Variant) -> None:
    model = adapted(conv_net, linear, r=2, target_modules=["first", "second", "head"])
    x = torch.randn(2, 4, 9, 9)
    expected, before = model(x), base_weights(model)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, **ROUNDING)
    model.unmerge_adapter()
    assert same(base_weights(model), before)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, **ROUNDING)
