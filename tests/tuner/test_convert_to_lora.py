"""peft.convert_to_lora: at full rank it reproduces every method that is one matrix, and refuses the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, save_as_lora, set_peft_model_state_dict
from torch import Tensor, nn

from subspace_tuning import SubspaceLayer

from .conftest import EVERY, Builder, Variant

Batch = dict[str, Tensor]

CONVERTED = [variant for variant in EVERY if variant.linear and not variant.names_bias]
REFUSED = [variant for variant in EVERY if variant not in CONVERTED]


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def delta_of(layer: Any) -> Tensor:
    delta: Tensor = layer.get_delta_weight("default")
    return delta


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("variant", CONVERTED, ids=str)
def test_at_full_rank_nothing_is_lost(
    request: pytest.FixtureRequest, architecture: str, variant: Variant, batch: Batch
) -> None:
    build: Builder = request.getfixturevalue(architecture)
    model: Any = get_peft_model(build(), variant.config(init_weights=False)).eval()
    config, state = convert_to_lora(model, rank=32)
    assert isinstance(config, LoraConfig)
    lora: Any = get_peft_model(build(), config).eval()
    result = set_peft_model_state_dict(lora, state)
    assert not result.unexpected_keys
    torch.testing.assert_close(logits(lora, batch), logits(model, batch), rtol=1e-3, atol=1e-4)
    own = {name: delta_of(module) for name, module in model.named_modules() if isinstance(module, SubspaceLayer)}
    converted = {name: delta_of(module) for name, module in lora.named_modules() if name in own}
    assert own.keys() == converted.keys()
    for name, delta in own.items():
        torch.testing.assert_close(converted[name], delta, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", CONVERTED, ids=str)
def test_a_low_rank_is_the_best_approximation(bert: Builder, variant: Variant) -> None:
    model: Any = get_peft_model(bert(), variant.config(init_weights=False, target_modules=["query"]))
    rank = 3
    state = convert_to_lora(model, rank=rank)[1]
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, SubspaceLayer))
    delta = layer.get_delta_weight("default")
    found = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    lost = torch.linalg.svdvals(delta)[rank:].norm()
    torch.testing.assert_close((delta - found).norm(), lost, rtol=1e-3, atol=1e-5)
    if variant.name in ("lora", "trilora", "flora"):
        exact = convert_to_lora(model, rank=4)[1]
        found = exact[f"{name}.lora_B.weight"] @ exact[f"{name}.lora_A.weight"]
        torch.testing.assert_close(found, delta, rtol=1e-3, atol=1e-5)


def test_a_converted_adapter_is_saved_and_loaded_by_plain_peft(bert: Builder, tmp_path: Path, batch: Batch) -> None:
    variant = Variant("ssb")
    model: Any = get_peft_model(bert(), variant.config(init_weights=False, layers_to_transform=[1])).eval()
    save_as_lora(tmp_path, model, rank=32)
    loaded = PeftModel.from_pretrained(bert(), tmp_path)
    assert loaded.peft_config["default"].peft_type.value == "LORA"
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", REFUSED, ids=str)
def test_what_is_no_matrix_is_refused(bert: Builder, variant: Variant) -> None:
    model = get_peft_model(bert(), variant.config(target_modules=["query"]))
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=4)
    assert not model.supports_lora_conversion()


def test_convolutions_and_embeddings_are_refused(conv_net: Builder) -> None:
    model = get_peft_model(conv_net(), Variant("ssb").config(target_modules=["first", "head"]))
    with pytest.raises(TypeError, match="SubspaceConv"):
        convert_to_lora(model, rank=2)
    embedding = get_peft_model(nn.Sequential(nn.Embedding(9, 4)), Variant("ssb").config(target_modules=["0"]))
    with pytest.raises(TypeError, match="SubspaceEmbedding"):
        convert_to_lora(embedding, rank=2)


@pytest.mark.parametrize("variant", CONVERTED, ids=str)
def test_supports_lora_conversion(bert: Builder, variant: Variant) -> None:
    assert get_peft_model(bert(), variant.config()).supports_lora_conversion()
