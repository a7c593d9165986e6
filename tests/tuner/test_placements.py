"""Methods with a place of their own: around a normalisation, in the cross-attention, on a convolution's axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer
from subspace_tuning.methods.roles import CROSS_ATTENTION, FFN_NORM
from subspace_tuning.tuner.roles import target_modules

from .conftest import Batch, Builder, logits


def names(model: nn.Module) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer)
    }


def test_pfeiffers_adapter_wraps_the_block(bert: Builder, batch: Batch, tmp_path: Path) -> None:
    """With z = FFN out and u = LN(z + x) the block gives LN(adapter(u) + z + x)."""
    torch.manual_seed(3)
    model: Any = get_peft_model(bert(), SubspaceConfig(method="pfeiffer", r=5, init_weights=False)).eval()
    assert names(model) == {f"bert.encoder.layer.{i}.output.LayerNorm" for i in (0, 1)}
    block = model.base_model.model.bert.encoder.layer[0].output
    f = block.LayerNorm.subspace_params["default"]
    hidden, x = torch.randn(2, 3, 48), torch.randn(2, 3, 32)
    z, norm = block.dense(hidden), block.LayerNorm.base_layer
    u = norm(z + x)
    adapter = torch.relu(u @ f["A"] + f["a"]) @ f["B"] + f["c"]
    torch.testing.assert_close(block(hidden, x), norm(adapter + z + x))
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(bert(), tmp_path), batch), expected)
    with pytest.raises(SubspaceError, match="'pfeiffer' cannot be merged"):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(bert(), batch))


def test_pfeiffers_adapter_goes_around_normalisations_alone(bert: Builder) -> None:
    allowed = "'pfeiffer' wraps normalisations of the last dimension only"
    with pytest.raises(SubspaceError, match=f"is a Linear; {allowed}"):
        get_peft_model(bert(), SubspaceConfig(method="pfeiffer", target_modules=["query"]))
    with pytest.raises(SubspaceError, match=f"is a GroupNorm; {allowed}"):
        get_peft_model(nn.Sequential(nn.GroupNorm(2, 4)), SubspaceConfig(method="pfeiffer", target_modules=["0"]))
    with pytest.raises(SubspaceError, match="is a LayerNorm, which has no matrix"):
        get_peft_model(bert(), SubspaceConfig(method="lora", target_modules=["output.LayerNorm"]))


def test_xattn_trains_the_cross_attention_alone(t5: Builder, bert: Builder) -> None:
    found = names(get_peft_model(t5(), SubspaceConfig(method="xattn")))
    assert found and all("EncDecAttention" in name for name in found)
    assert {name.rpartition(".")[2] for name in found} == {"q", "k", "v", "o"}
    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    torch.manual_seed(0)
    model: Any = get_peft_model(BartForConditionalGeneration(config), SubspaceConfig(method="xattn"))
    assert len(names(model)) == 2 * 4 and all("encoder_attn" in name for name in names(model))
    assert model.get_nb_trainable_parameters()[0] == 2 * 4 * 16 * 16
    ids = torch.randint(3, 40, (2, 5))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    with pytest.raises(SubspaceError, match="not found in the base model"):
        get_peft_model(bert(), SubspaceConfig(method="xattn"))


@pytest.mark.parametrize(
    ("model_type", "has_norm", "has_cross"),
    [
        ("bert", True, True),
        ("roberta", True, True),
        ("deberta-v2", True, False),
        ("gpt2", False, True),
        ("llama", False, False),
        ("qwen2", False, False),
        ("t5", False, True),
        ("bart", True, True),
        ("vit", False, False),
        ("clip", False, False),
    ],
)
def test_the_table_knows_normalisations_and_cross_attention(model_type: str, has_norm: bool, has_cross: bool) -> None:
    for role, has in ((FFN_NORM, has_norm), (CROSS_ATTENTION, has_cross)):
        if has:
            assert target_modules(model_type, [role])
        else:
            with pytest.raises(SubspaceError, match="Or pass target_modules"):
                target_modules(model_type, [role])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_flora_on_a_convolution_has_a_factor_per_axis(axes: int) -> None:
    torch.manual_seed(0)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    window = (3, 2, 4)[:axes]
    net = nn.Sequential(convolution(4, 6, window))
    model: Any = get_peft_model(net, SubspaceConfig(method="flora", r=2, target_modules=["0"]))
    shapes = {name: tuple(p.shape) for name, p in model.base_model.model[0].subspace_params["default"].items()}
    core = 2
    for width in window:
        core *= min(2, width)
    wanted = {"A": (4, 2), "B": (2, 6), "G": (core, 2)}
    assert shapes == wanted | {f"C{i + 1}": (width, min(2, width)) for i, width in enumerate(window)}
    x: Tensor = torch.randn(2, 4, *(9,) * axes)
    torch.testing.assert_close(model(x), net[0].base_layer(x))


def test_rank_stabilised_scale() -> None:
    def scale(**fields: Any) -> float:
        config = SubspaceConfig(method="lora", r=16, alpha=8.0, target_modules=["0"], **fields)
        model: Any = get_peft_model(nn.Sequential(nn.Linear(20, 20)), config)
        return float(model.base_model.model[0].scaling["default"])

    assert scale() == pytest.approx(0.5)
    assert scale(rank_stabilised=True) == pytest.approx(2.0)
