"""Adapted layers whose weight is read and not called, their attributes, and those that nothing reaches."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BartConfig, BartModel, MambaConfig, MambaForCausalLM

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer

from .conftest import Variant

TARGETS = ["linear1", "linear2"]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 12, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 1).eval()


def test_the_fast_path_of_torch_sees_every_method(variant: Variant) -> None:
    x = torch.randn(2, 5, 16)
    config = variant.config(target_modules=TARGETS, init_weights=False)
    model: Any = get_peft_model(encoder(), config)
    y = model.train(not variant.method.formula.has_gates)(x)  # which are drawn in training
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    masked = model(x, src_key_padding_mask=padding)
    model.eval()
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
        fast = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(fast[0], masked[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[1, :3], masked[1, :3], rtol=1e-4, atol=1e-5)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_norms_that_bitfit_adapts_are_seen_by_the_fast_path() -> None:
    model: Any = get_peft_model(encoder(), SubspaceConfig(method="bitfit", init_weights=False))
    x = torch.randn(2, 5, 16)
    y = model.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), y, rtol=1e-4, atol=1e-5)


class Reader(nn.Module):
    """A model that uses a weight without calling the module, as fused losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        if self.target.weight.dtype != x.dtype or self.target.weight.shape != (9, 6):
            raise AssertionError
        return F.linear(x, self.target.weight, self.target.bias)


def test_a_weight_that_is_read_is_the_one_that_a_call_applies(variant: Variant) -> None:
    model: Any = get_peft_model(Reader(), variant.config(target_modules=["target"], init_weights=False)).eval()
    layer, x = model.base_model.model.target, torch.randn(3, 6)
    if not variant.linear:
        with pytest.raises(SubspaceError, match="no dense phi"):
            model(x)
        return
    torch.testing.assert_close(model(x), layer(x), rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        assert layer.weight is layer.frozen_weight
    called = layer(x)
    model.merge_adapter()
    assert isinstance(layer.weight, nn.Parameter)
    torch.testing.assert_close(model(x), called, rtol=1e-4, atol=1e-5)


def test_several_adapters_are_read_as_they_are_called() -> None:
    config = SubspaceConfig(method="lora", r=2, target_modules=["target"], init_weights=False)
    model: Any = get_peft_model(Reader(), config)
    model.add_adapter("other", SubspaceConfig(method="bitfit", target_modules=["target"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(3, 6)
    torch.testing.assert_close(model(x), model.base_model.model.target(x))


def test_a_mamba_reads_its_step_and_its_convolution() -> None:
    config = MambaConfig(vocab_size=30, hidden_size=16, state_size=4, num_hidden_layers=1, time_step_rank=4)
    base = MambaForCausalLM(config).eval()
    ids = torch.randint(3, 30, (1, 7))
    plain = base(input_ids=ids, use_cache=False).logits.detach()
    settings = SubspaceConfig(method="ssb", target_modules=["dt_proj", "conv1d"], init_weights=False)
    model: Any = get_peft_model(base, settings).eval()
    logits = model(input_ids=ids, use_cache=False).logits
    assert not torch.allclose(logits, plain, atol=1e-4)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, logits, rtol=1e-4, atol=1e-4)


def test_the_attributes_of_the_base_layer_are_found_on_the_adapted_one() -> None:
    for module, names in (
        (nn.Conv2d(2, 4, 3, stride=2), ("stride", "kernel_size", "groups", "padding_mode")),
        (nn.Embedding(5, 4, padding_idx=1), ("num_embeddings", "embedding_dim", "padding_idx")),
        (nn.LayerNorm(4), ("eps", "normalized_shape")),
    ):
        method = "bitfit" if isinstance(module, nn.LayerNorm) else "ssb"
        model: Any = get_peft_model(nn.Sequential(module), SubspaceConfig(method=method, target_modules=["0"]))
        for layer in (model.base_model.model[0], copy.deepcopy(model).base_model.model[0]):
            assert isinstance(layer, SubspaceLayer)
            assert [getattr(layer, name) for name in names] == [getattr(module, name) for name in names]
            assert not hasattr(layer, "no_such_attribute") and not hasattr(layer, "_conv_forward")
        again = pickle.loads(pickle.dumps(model.base_model.model[0]))
        assert getattr(again, names[0]) == getattr(module, names[0])


def test_a_module_that_nothing_reaches_is_named() -> None:
    config = BartConfig(
        vocab_size=30,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=20,
    )
    model: Any = get_peft_model(BartModel(config), SubspaceConfig(method="ssb", target_modules=["shared"])).train()
    ids = torch.randint(3, 30, (1, 7))
    with pytest.warns(UserWarning, match=r"shared \(it shares its weight with .*embed_tokens"):
        model(input_ids=ids)
    model = get_peft_model(BartModel(config), SubspaceConfig(method="ssb", target_modules=["shared"])).eval()
    with pytest.warns(UserWarning, match=r"changes nothing: shared \(it shares its weight with"):
        model(input_ids=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=ids)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[1](x)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("error")
def test_an_expert_that_is_not_hit_is_not_named() -> None:
    get_peft_model(Experts(), SubspaceConfig(method="ssb", target_modules="all-linear")).train()(torch.randn(2, 4))
