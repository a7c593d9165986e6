"""Bad input: one clear line, and the model is what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PretrainedConfig

from subspace_tuning import SubspaceConfig, SubspaceError, methods
from subspace_tuning.methods import EVERY_BIAS

from .conftest import Builder, Variant

Batch = dict[str, Tensor]
Remember = Callable[[nn.Module], Callable[[], None]]


def refused(model: nn.Module, config: SubspaceConfig, unchanged: Remember, adapter_name: str = "default") -> str:
    """Try to adapt a model; return the message after checking that it is one line and that nothing changed."""
    check = unchanged(model)
    generator = torch.get_rng_state()
    add = model.add_adapter if isinstance(model, PeftModel) else lambda name, own: get_peft_model(model, own, name)
    with pytest.raises(SubspaceError) as caught:
        add(adapter_name, config)
    check()
    assert torch.equal(torch.get_rng_state(), generator)
    message = str(caught.value)
    assert "\n" not in message
    return message


# In the configuration alone


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "loar"}, r"unknown method 'loar'; did you mean lora"),
        ({"method": "sam-parser"}, r"did you mean sam_parser"),
        ({"method": ""}, r"unknown method ''; known: adalora, bitfit"),
        ({}, r"give a method \(see `subspace methods`\) or a formula"),
        ({"method": "lora", "formula": "D1 @ W"}, r"method 'lora' is W \+ s \* A @ B here, not D1 @ W"),
        ({"formula": "W @"}, r"^formula '.*': '@' has no right operand"),
        ({"formula": "A @ B"}, r"phi\(W\) does not use W"),
        ({"formula": "A @ B @ W"}, r"is not W at its start, at rank 8: .*write '\(I \+ A @ B\) @ W'"),
        ({"formula": "W + A @ sin @ B"}, r"sin"),
        ({"formula": "V_r @ A + W"}, r"formula '>>>V_r @ A \+ W<<<': the left side is m x \?, the right side n x m"),
        ({"formula": "__import__('os').system('true')"}, r"unknown function"),
        ({"formula": "W"}, r"has no trainable factor"),
        ({"formula": "W @ (I + M * Delta)"}, r"the left side is r x r, the right side n x m|left side|right side"),
        ({"method": "lora", "budget": 0.1}, r"method 'lora' chooses nothing within a budget"),
        (
            {"method": "pafi", "budget": 1.5},
            r"budget = 1.5 is neither a share between 0.0 and 1.0 nor a positive whole",
        ),
        ({"method": "lora", "schedule": {"launch": 3}}, r"method 'lora' has no schedule"),
        ({"method": "lora_dash", "schedule": {"lunch": 3}}, r"schedule lora_dash has no option 'lunch'; did you mean"),
        ({"method": "ssb", "pattern": "orthogonal"}, r"pattern orthogonal constrains A and B .* method 'ssb' has none"),
        ({"method": "lora", "pattern": "orthonormal"}, r"unknown pattern 'orthonormal'; did you mean"),
        ({"method": "lora", "pattern_weight": 0.1}, r"pattern_weight needs the pattern orthogonal or diagonal"),
        ({"method": "pissa", "pattern": "nonlinear"}, r"pattern nonlinear does not work with method 'pissa'"),
        ({"method": "dora", "pattern": "nonlinear"}, r"pattern nonlinear does not work with method 'dora'"),
        ({"method": "parallel_adapter", "pattern": "nonlinear"}, r"'parallel_adapter' already has a nonlinearity"),
        ({"method": "prefix_tuning"}, r"use peft's PrefixTuningConfig, or `subspace train`"),
        ({"formula": "W @ Q", "starts": {"Q": "ident"}}, r"unknown start 'ident'; did you mean identity"),
        ({"formula": "W @ D2", "starts": {"D3": "ones"}}, r"a start is given for 'D3'; did you mean D2"),
        ({"method": "lora", "starts": {"A": "zeros"}}, r"starts are for formulas, and method 'lora' has its own"),
        ({"method": "lora", "r": 0}, r"the rank r = 0 is not a positive whole number"),
        ({"method": "lora", "r": -4}, r"the rank r = -4"),
        ({"method": "lora", "r": 4.0}, r"the rank r = 4\.0 is not a positive whole number"),
        ({"method": "lora", "r": True}, r"the rank r = True"),
        ({"method": "lora", "r": "8"}, r"the rank r = '8'"),
        ({"method": "lora", "rank_pattern": {"query": 0}}, r"the rank query = 0"),
        ({"method": "lora", "alpha": 0}, r"the scale alpha = 0 is not a positive number"),
        ({"method": "lora", "alpha": float("nan")}, r"the scale alpha = nan"),
        ({"method": "lora", "alpha": float("inf")}, r"the scale alpha = inf"),
        ({"method": "lora", "alpha": "16"}, r"the scale alpha = '16'"),
        ({"method": "lora", "alpha_pattern": {"key": -1.0}}, r"the scale key = -1\.0"),
        ({"method": "lora", "dropout": 1.0}, r"dropout = 1\.0: it must be at least 0 and below 1"),
        ({"method": "lora", "dropout": -0.1}, r"dropout = -0\.1"),
        ({"method": "lora", "dropout": float("nan")}, r"dropout = nan"),
        ({"method": "lora", "dropout": None}, r"dropout = None"),
        ({"method": "lora", "format": 2}, r"of format 2, saved by a newer version .*: upgrade it"),
        ({"method": "lora", "format": None}, r"of format None"),
    ],
    ids=str,
)
def test_a_wrong_configuration(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SubspaceError, match=message) as caught:
        SubspaceConfig(**fields)
    assert "\n" not in str(caught.value)


# At the model


def test_targets_that_match_nothing_name_what_exists(bert: Builder, variant: Variant, unchanged: Remember) -> None:
    message = refused(bert(), variant.config(target_modules=["q_proj", "v_proj"]), unchanged)
    assert message.startswith("Target modules ['q_proj', 'v_proj'] not found in the base model. Modules that exist: ")
    for name in ("query", "key", "value", "dense", "classifier", "word_embeddings"):
        assert name in message
    message = refused(bert(), variant.config(target_modules=r".*\.q_proj"), unchanged)
    assert message.startswith(r"Target modules .*\.q_proj not found in the base model")
    limited = variant.config(target_modules=["query"], layers_to_transform=[5])
    assert "['query'] not found in the base model (with layers_to_transform=[5])" in refused(bert(), limited, unchanged)
    everything = variant.config(target_modules=["query"], exclude_modules=["query"])
    assert "(with exclude_modules={'query'})" in refused(bert(), everything, unchanged)
    assert "Target modules [] not found" in refused(bert(), variant.config(target_modules=[]), unchanged)
    with pytest.raises(NoMatchingPeftModuleError):  # peft's own type, for who catches it
        get_peft_model(bert(), variant.config(target_modules=["q_proj"]))


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bert: Builder, variant: Variant, targets: Any, value: float) -> None:
    model: Any = bert()
    layer = model.bert.encoder.layer[1]
    module = layer.output.dense if variant.name == "houlsby" else layer.intermediate.dense
    module.weight.data[3, 4] = value
    types = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(SubspaceError, match=r"bert\.encoder\.layer\.1\.(output|intermediate)\.dense: .* not finite"):
        get_peft_model(model, variant.config(target_modules=targets))
    assert types == {name: type(module) for name, module in model.named_modules()}


def test_modules_of_a_kind_that_cannot_be_adapted(bert: Builder, variant: Variant, unchanged: Remember) -> None:
    message = refused(bert(), variant.config(target_modules=["query", "attention.self"]), unchanged)
    assert message.startswith(
        "Target module bert.encoder.layer.0.attention.self (BertSelfAttention) is not supported. Currently, only the "
        "following modules are supported: Linear"
    )
    message = refused(bert(), variant.config(target_modules=["encoder.layer.0"]), unchanged)
    assert "(BertLayer) is not supported" in message
    if not variant.names_bias:
        message = refused(bert(), variant.config(target_modules=["query", "LayerNorm"]), unchanged)
        assert "is a LayerNorm, which has no matrix" in message


def test_a_module_without_a_bias(llama: Builder, unchanged: Remember) -> None:
    bitfit = SubspaceConfig(method="bitfit", target_modules=["q_proj"])
    assert refused(llama(), bitfit, unchanged) == (
        "method 'bitfit' trains biases, and model.layers.0.self_attn.q_proj has none"
    )
    message = refused(llama(), SubspaceConfig(method="bitfit"), unchanged)
    assert message == "method 'bitfit' finds nothing to adapt in this model"


def test_a_model_that_no_placement_is_known_for(conv_net: Builder, unchanged: Remember) -> None:
    message = refused(conv_net(), SubspaceConfig(method="ssb"), unchanged)
    assert message == (
        "Please specify `target_modules` in `peft_config`: nothing in this model can be recognised as a block with "
        "attention or a feed-forward network. Modules that exist: first, head, second"
    )
    model: Any = conv_net()
    model.config = type("OddConfig", (PretrainedConfig,), {"model_type": "bort"})()
    message = refused(model, SubspaceConfig(method="ssb"), unchanged)
    assert message.startswith(
        "Please specify `target_modules` in `peft_config`: nothing in this model of type 'bort' can be recognised"
    )


def test_weights_that_are_not_floating(unchanged: Remember) -> None:
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    model = nn.Sequential(nn.Linear(4, 4), linear).requires_grad_(False)
    message = refused(model, SubspaceConfig(method="ssb", target_modules=["0", "1"]), unchanged)
    assert message == (
        "1 is a Linear whose weight is quantised or packed in an unknown way (torch.int8): load the "
        "model without quantization_config, or dequantise it first"
    )


def test_modules_that_change_under_the_adapter(unchanged: Remember) -> None:
    config = SubspaceConfig(method="lora", r=2, target_modules=["0"])
    assert "max_norm" in refused(nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)), config, unchanged)
    bitfit = SubspaceConfig(method="bitfit", target_modules=["0"])
    assert "more than one dimension" in refused(nn.Sequential(nn.LayerNorm((3, 4))), bitfit, unchanged)


@pytest.mark.parametrize("targets", [["linear1", "out_proj"], "all-linear", r".*out_proj"])
def test_a_module_that_nobody_calls(targets: Any, unchanged: Remember) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).requires_grad_(False)
    message = refused(model, SubspaceConfig(method="ssb", target_modules=targets), unchanged)
    assert message.startswith("self_attn.out_proj is part of a MultiheadAttention, which reads its weight without")
    get_peft_model(model, SubspaceConfig(method="ssb", target_modules="all-linear", exclude_modules=["out_proj"]))


def test_bitfit_leaves_out_what_nobody_calls() -> None:
    model: Any = get_peft_model(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), SubspaceConfig(method="bitfit"))
    model(torch.randn(2, 3, 8)).square().sum().backward()
    trained = {name.split(".")[2]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {"linear1", "linear2", "norm1", "norm2"}
    assert all(gradient is not None for gradient in trained.values())


def test_an_adapter_named_like_a_factor(bert: Builder, batch: Batch, unchanged: Remember) -> None:
    message = refused(bert(), SubspaceConfig(method="lora"), unchanged, adapter_name="A")
    assert message == "adapter 'A' has a factor A, so no adapter of the model may have that name"
    model = get_peft_model(bert(), SubspaceConfig(method="ssb"), "D9")
    message = refused(model, SubspaceConfig(method="lora"), unchanged, adapter_name="D2")
    assert message == "adapter 'D9' has a factor D2, so no adapter of the model may have that name"
    taken = SubspaceConfig(formula="D9 @ W")
    assert "adapter 'other' has a factor D9" in refused(model, taken, unchanged, adapter_name="other")
    assert list(model.peft_config) == ["D9"]
    kept = SubspaceConfig(method="spectral", save_constants=True)
    assert "adapter 'other' has a factor U_r" in refused(
        get_peft_model(bert(), SubspaceConfig(method="ssb"), "U_r"), kept, unchanged, adapter_name="other"
    )


def test_a_refused_second_adapter_leaves_the_first(
    bert: Builder, variant: Variant, batch: Batch, unchanged: Remember
) -> None:
    model: Any = get_peft_model(bert(), variant.config(init_weights=False)).eval()
    expected = model(**batch).logits
    for config in (
        SubspaceConfig(method="lora", target_modules=["nowhere"]),
        SubspaceConfig(method="bitfit", target_modules=["word_embeddings"]),
        SubspaceConfig(method="ssb", target_modules=["query", "attention"]),
    ):
        refused(model, config, unchanged, adapter_name="second")
        assert list(model.peft_config) == ["default"]
        assert torch.equal(model(**batch).logits, expected)
    model.add_adapter("second", SubspaceConfig(method="lora"))
    assert torch.equal(model(**batch).logits, expected)


# At loading


def edited(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def wrong(folder: Path, model: nn.Module, message: str, unchanged: Remember) -> None:
    check = unchanged(model)
    with pytest.raises(SubspaceError, match=message) as caught:
        PeftModel.from_pretrained(model, folder)
    assert "\n" not in str(caught.value)
    check()


def test_an_adapter_of_another_version(bert: Builder, variant: Variant, tmp_path: Path, unchanged: Remember) -> None:
    get_peft_model(bert(), variant.config()).save_pretrained(tmp_path)
    edited(tmp_path, format=99)
    message = "the adapter is of format 99, saved by a newer version of subspace-tuning; this version reads up to 1"
    wrong(tmp_path, bert(), message, unchanged)
    edited(tmp_path, field_of_the_future=True)
    with pytest.warns(UserWarning, match="field_of_the_future"):
        wrong(tmp_path, bert(), message, unchanged)
    with pytest.raises(SubspaceError, match=message):
        PeftConfig.from_pretrained(tmp_path)


def test_an_adapter_whose_method_has_another_formula_here(bert: Builder, tmp_path: Path, unchanged: Remember) -> None:
    get_peft_model(bert(), SubspaceConfig(method="lora")).save_pretrained(tmp_path)
    edited(tmp_path, formula="W + s * A @ G @ B")
    wrong(tmp_path, bert(), r"method 'lora' is W \+ s \* A @ B here, not W \+ s \* A @ G @ B", unchanged)
    edited(tmp_path, method="loro", formula="W +")
    wrong(tmp_path, bert(), r"^formula '.*': '.' has no right operand", unchanged)
    edited(tmp_path, method="ssb", formula=str(methods.get("ssb").formula), starts={"D1": "zeros"})
    wrong(tmp_path, bert(), r"method 'ssb' has its own \(inferred ones\)", unchanged)


def other_bert(**sizes: int) -> BertForSequenceClassification:
    own = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_labels": 3}
    return BertForSequenceClassification(BertConfig(num_attention_heads=4, **own | sizes))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_base_of_another_shape(bert: Builder, variant: Variant, tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    get_peft_model(bert(), variant.config()).save_pretrained(tmp_path)
    base = other_bert(hidden_size=40, intermediate_size=56)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    message = (
        r"the adapter's factor \w+ has the shape \(.*\), here it needs \(.*\): it was trained on another base model"
    )
    with pytest.raises(SubspaceError, match=message) as caught:
        PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert "\n" not in str(caught.value)
    after = {name.replace(".base_layer", ""): tensor for name, tensor in base.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_base_of_another_depth(bert: Builder, variant: Variant, tmp_path: Path) -> None:
    get_peft_model(bert(), variant.config()).save_pretrained(tmp_path)
    message = r"the adapter has \d+ tensors that this base model has no place for, such as bert\.encoder\.layer\.1\."
    with pytest.raises(SubspaceError, match=message):
        PeftModel.from_pretrained(other_bert(num_hidden_layers=1), tmp_path)
    if variant.method.placement != EVERY_BIAS:  # which is a list of names, so that the third layer stays as it is
        with pytest.warns(UserWarning, match=r"missing adapter keys .*layer\.2"):
            PeftModel.from_pretrained(other_bert(num_hidden_layers=3), tmp_path)


def test_sizes_may_be_ignored_as_peft_allows(bert: Builder, variant: Variant, tmp_path: Path) -> None:
    get_peft_model(bert(), variant.config()).save_pretrained(tmp_path)
    if variant.method.formula.masked:  # positions of another matrix mean nothing
        pytest.skip("a mask is refused in any case")
    with pytest.warns(UserWarning, match="ignore_mismatched_sizes"):
        PeftModel.from_pretrained(other_bert(hidden_size=40), tmp_path, ignore_mismatched_sizes=True)
