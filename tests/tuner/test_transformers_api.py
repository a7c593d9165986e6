"""The doors of transformers and of peft's plumbing: add_adapter, load_adapter, injection, models on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer

from .conftest import Batch, Builder, Variant, logits


def layers(model: nn.Module) -> list[SubspaceLayer]:
    return [module for module in model.modules() if isinstance(module, SubspaceLayer)]


def test_add_save_load_and_delete_by_transformers(
    bert: Builder, variant: Variant, bert_folder: Path, tmp_path: Path, batch: Batch
) -> None:
    model: Any = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    plain = logits(model, batch)
    assert torch.equal(plain, logits(bert(), batch))
    model.add_adapter(variant.config(init_weights=False))
    model.eval()
    adapted = logits(model, batch)
    assert not torch.equal(adapted, plain)
    model.save_pretrained(tmp_path)
    model.disable_adapters()
    assert torch.equal(logits(model, batch), plain)
    model.enable_adapters()
    assert torch.equal(logits(model, batch), adapted)

    again: Any = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again, batch), adapted)
    again.add_adapter(SubspaceConfig(method="ssb", init_weights=False), "other")
    again.eval()
    assert again.active_adapters() == ["other"]
    assert not torch.equal(logits(again, batch), adapted)
    again.set_adapter("default")
    assert torch.equal(logits(again, batch), adapted)
    again.delete_adapter("other")
    assert torch.equal(logits(again, batch), adapted)
    assert {name for layer in layers(again) for name in layer.subspace_params} == {"default"}
    again.delete_adapter("default")
    assert torch.equal(logits(again, batch), plain)


def test_auto_model_loads_an_adapter_folder(variant: Variant, bert_folder: Path, tmp_path: Path, batch: Batch) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    config = variant.config(init_weights=False, modules_to_save=["classifier"])
    peft_model: Any = get_peft_model(base, config).eval()
    with torch.no_grad():
        peft_model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
    peft_model.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(logits(model, batch), logits(peft_model, batch))


def test_auto_model_without_a_head(variant: Variant, bert_folder: Path, tmp_path: Path, batch: Batch) -> None:
    base = AutoModel.from_pretrained(bert_folder)
    peft_model: Any = get_peft_model(base, variant.config(init_weights=False, task_type="FEATURE_EXTRACTION")).eval()
    peft_model.save_pretrained(tmp_path)
    model: Any = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = peft_model(**batch).last_hidden_state
        assert torch.equal(model(**batch).last_hidden_state, expected)
        assert not torch.equal(AutoModel.from_pretrained(bert_folder)(**batch).last_hidden_state, expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_injection_without_a_peft_model(conv_net: Builder, matrix: Variant, low_cpu_mem_usage: bool) -> None:
    config = matrix.config(r=2, init_weights=False, target_modules=["first", "second", "head"])
    model = inject_adapter_in_model(config, conv_net()).eval()
    x = torch.randn(2, 4, 9, 9)
    state = get_peft_model_state_dict(model)
    layer = next(module for module in model.modules() if isinstance(module, SubspaceLayer))
    trained = set(layer.method["default"].formula.trainable)  # flora's has a factor for each axis of a convolution
    assert {name.split(".")[-1] for name in state} >= trained | matrix.persistent
    again = inject_adapter_in_model(config, conv_net(), low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert all(p.is_meta == low_cpu_mem_usage for name, p in again.named_parameters() if "subspace_params" in name)
    result = set_peft_model_state_dict(again, state, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert torch.equal(again(x), model(x))
    assert not torch.equal(again(x), conv_net()(x))


def test_injection_from_a_state_dict(bert: Builder, variant: Variant, batch: Batch) -> None:
    model = inject_adapter_in_model(variant.config(init_weights=False), bert()).eval()
    state = get_peft_model_state_dict(model)
    again = inject_adapter_in_model(variant.config(), bert(), state_dict=state).eval()
    set_peft_model_state_dict(again, state)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_model_on_the_meta_device(bert: Builder, variant: Variant) -> None:
    with torch.device("meta"):
        empty = bert()
    model = get_peft_model(empty, variant.config())
    real = get_peft_model(bert(), variant.config())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(buffer.is_meta for layer in layers(model) for buffer in layer.buffers())
    assert model.get_nb_trainable_parameters() == real.get_nb_trainable_parameters()
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in real.named_parameters()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in model.named_parameters()}
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in real.named_buffers()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in model.named_buffers()}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_on_a_low_precision_base_rounds_nothing(
    bert: Builder, variant: Variant, tmp_path: Path, batch: Batch, low_cpu_mem_usage: bool
) -> None:
    model: Any = get_peft_model(bert().bfloat16(), variant.config(init_weights=False)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "subspace_params" in name:
                assert parameter.dtype == torch.float32
                parameter.mul_(1.0 + 2.0**-12)  # bits that bfloat16 does not have
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(bert().bfloat16(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    tensors = dict(again.named_parameters()) | dict(again.named_buffers())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].dtype == tensor.dtype
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_low_memory_adding(bert: Builder, variant: Variant, tmp_path: Path, batch: Batch) -> None:
    model: Any = get_peft_model(bert(), variant.config(init_weights=False)).eval()
    model.save_pretrained(tmp_path)
    again: Any = get_peft_model(bert(), SubspaceConfig(method="ssb")).eval()
    again.load_adapter(tmp_path, "second", low_cpu_mem_usage=True)
    again.set_adapter("second")
    assert not any(parameter.is_meta for parameter in again.parameters())
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_refused_adapter_leaves_a_transformers_model_alone(bert: Builder, batch: Batch, unchanged: Any) -> None:
    model: Any = bert()
    model.add_adapter(SubspaceConfig(method="ssb"))
    check, before = unchanged(model), logits(model, batch)
    with pytest.raises(SubspaceError, match=r"^Target modules .* not found in the base model"):
        model.add_adapter(SubspaceConfig(method="lora", target_modules=["nowhere"]), "other")
    check()
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, batch), before)
