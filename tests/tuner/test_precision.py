"""Low precision: factors in float32 over a base in bfloat16 or float16, autocast over float32, casts afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import Builder, Variant

Batch = dict[str, Tensor]

TARGETS = ["query", "value", "intermediate.dense"]


def adapted(model: nn.Module, variant: Variant, **options: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, variant.config(init_weights=False, target_modules=TARGETS), **options).eval()


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "subspace_params" in name}


def constants(model: nn.Module) -> list[Tensor]:
    held = [buffer for name, buffer in model.named_buffers() if "subspace_constants" in name]
    return [buffer for buffer in held if buffer.is_floating_point()]  # a mask's positions keep their integers


def layer_calls(model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Run the model and return what goes into each adapted layer, and what it gives out."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer)
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def output_dtypes(calls: dict[str, tuple[Tensor, Tensor]]) -> set[torch.dtype]:
    return {output.dtype for _, output in calls.values()}


@torch.no_grad()
def assert_rounded_only(calls: dict[str, tuple[Tensor, Tensor]], exact: nn.Module, dtype: torch.dtype) -> None:
    """Compare each layer's output with that of the exact layer on the same input, in relation to its norm.

    Layer by layer, since the network amplifies the rounding of some methods more than that of others.
    """
    assert calls
    for name, (rows, output) in calls.items():
        layer = exact.get_submodule(name)
        wanted = layer(rows.to(next(layer.parameters()).dtype))
        error = (output.to(wanted.dtype) - wanted).norm() / wanted.norm()
        assert error < 2 * torch.finfo(dtype).eps, (name, float(error))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("raised", [True, False])
def test_a_low_precision_base(bert: Builder, variant: Variant, batch: Batch, dtype: torch.dtype, raised: bool) -> None:
    model = adapted(bert().to(dtype), variant, autocast_adapter_dtype=raised)
    assert {p.dtype for p in factors(model).values()} == {torch.float32 if raised else dtype}
    assert {buffer.dtype for buffer in constants(model)} <= {torch.float32}
    calls = layer_calls(model, batch)
    assert output_dtypes(calls) == {dtype}
    exact = adapted(bert().to(dtype).float(), variant)
    for name, parameter in factors(model).items():
        factors(exact)[name].data.copy_(parameter)
    assert_rounded_only(calls, exact, dtype)

    model.train()
    model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for name, parameter in factors(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype
        assert torch.isfinite(parameter.grad).all()


def test_the_start_is_the_low_precision_model(bert: Builder, variant: Variant, batch: Batch) -> None:
    base = bert().bfloat16()
    expected = base(**batch).logits
    model: Any = get_peft_model(bert().bfloat16(), variant.config()).eval()
    assert (model(**batch).logits - expected).abs().max() < 0.1


def test_autocast_over_a_float32_base(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = adapted(bert(), variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = layer_calls(model, batch)
        of_lora = layer_calls(adapted(bert(), Variant("lora")), batch)
        loss = model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss
    assert output_dtypes(calls) == output_dtypes(of_lora) == {torch.bfloat16}
    assert_rounded_only(calls, model, torch.bfloat16)
    loss.backward()
    for name, parameter in factors(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32


def test_a_mixed_batch_under_autocast(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = adapted(bert(), variant)
    model.add_adapter("other", SubspaceConfig(method="dora", r=3, init_weights=False))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch, adapter_names=["default", "other", "__base__", "default"]).logits
        alone = model(**batch).logits
        base = bert()(**batch).logits
    assert mixed.dtype == alone.dtype
    assert (mixed - alone)[[0, 3]].abs().max() < 0.1
    assert (mixed - base)[2].abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_is_cast_as_a_whole(bert: Builder, variant: Variant, batch: Batch, dtype: torch.dtype) -> None:
    model = adapted(bert(), variant)
    exact = copy.deepcopy(model)
    model.to(dtype)
    assert {tensor.dtype for tensor in [*model.parameters(), *constants(model)]} == {dtype}
    calls = layer_calls(model, batch)
    assert output_dtypes(calls) == {dtype}
    assert_rounded_only(calls, exact, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


def test_double_precision_from_the_start(bert: Builder, variant: Variant, batch: Batch) -> None:
    model: Any = get_peft_model(bert().double(), variant.config()).eval()
    assert {tensor.dtype for tensor in [*model.parameters(), *constants(model)]} == {torch.float64}
    assert (model(**batch).logits - bert().double()(**batch).logits).abs().max() < 1e-12


def test_a_low_precision_merge_is_rounded_once(bert: Builder, linear: Variant) -> None:
    model = adapted(bert().bfloat16(), linear)
    exact = adapted(bert().bfloat16().float(), linear)
    for name, parameter in factors(model).items():
        factors(exact)[name].data.copy_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge_adapter()
    exact.merge_adapter()
    wide = exact.state_dict()
    for name, tensor in model.state_dict().items():
        if "base_layer" in name:
            assert tensor.dtype == torch.bfloat16
            torch.testing.assert_close(tensor, wide[name].bfloat16(), rtol=2**-7, atol=1e-6)
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_layers_in_low_precision(conv_net: Builder, gpt2: Builder, matrix: Variant) -> None:
    config = matrix.config(r=2, init_weights=False, target_modules=["first", "second", "head"])
    model: Any = get_peft_model(conv_net().bfloat16(), config).eval()
    assert model(torch.randn(2, 4, 9, 9).bfloat16()).dtype == torch.bfloat16
    embedding = get_peft_model(gpt2().bfloat16(), matrix.config(r=2, init_weights=False, target_modules=["wpe"])).eval()
    assert embedding(input_ids=torch.arange(6).view(2, 3)).logits.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net = get_peft_model(conv_net(), config).eval()
        assert net(torch.randn(2, 4, 9, 9)).dtype == torch.bfloat16
