"""Where adapters go: default placements, suffixes, regular expressions, layers, exclusions, patterns, saved modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer
from subspace_tuning.algebra import Sizes
from subspace_tuning.methods import ALL_MATRICES, EVERY_BIAS, SCALED

from .conftest import Builder, Variant

ENCODER = "bert.encoder.layer"
SIX = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
THREE = ["attention.self.key", "attention.self.value", "intermediate.dense"]


def adapted(model: nn.Module) -> dict[str, SubspaceLayer]:
    """The adapted layers by the names of the modules that they took the place of."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer)
    }


def in_layers(ends: list[str], layers: tuple[int, ...] = (0, 1)) -> set[str]:
    return {f"{ENCODER}.{layer}.{end}" for layer in layers for end in ends}


def with_bias(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(getattr(module, "bias", None), Tensor)}


def test_the_default_placement_in_bert(bert: Builder, variant: Variant) -> None:
    placement = variant.method.placement
    model = get_peft_model(bert(), variant.config(task_type="SEQ_CLS"))
    if placement == EVERY_BIAS:
        expected = with_bias(bert()) - {"classifier"}
        assert "bert.embeddings.LayerNorm" in expected
        assert "bert.pooler.dense" in expected
    else:
        ends = {ALL_MATRICES: SIX, SCALED: THREE, ("attention_output", "ffn_out"): [SIX[3], SIX[5]]}
        expected = in_layers(ends[placement])
    assert adapted(model).keys() == expected


def test_which_methods_go_where() -> None:
    assert Variant("bitfit").method.placement == EVERY_BIAS
    assert {name for name in ("ssl", "ssb", "ia3") if Variant(name).method.placement == SCALED} == {"ssl", "ssb", "ia3"}
    assert Variant("lora").method.placement == Variant("sam_parser").method.placement == ALL_MATRICES


def test_bitfit_trains_the_head_only_where_the_head_is_not_saved(bert: Builder) -> None:
    assert "classifier" in adapted(get_peft_model(bert(), SubspaceConfig(method="bitfit")))
    saved = get_peft_model(bert(), SubspaceConfig(method="bitfit", modules_to_save=["classifier"]))
    assert "classifier" not in {name.split(".")[0] for name in adapted(saved)}
    saved.add_adapter("other", SubspaceConfig(method="bitfit"))
    assert "classifier" not in {name.split(".")[0] for name in adapted(saved)}


def test_the_default_placement_follows_the_architecture(llama: Builder, gpt2: Builder, t5: Builder) -> None:
    ends = {name.split(".", 3)[-1] for name in adapted(get_peft_model(llama(), SubspaceConfig(method="ssb")))}
    assert ends == {"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}
    ends = {name.split(".", 3)[-1] for name in adapted(get_peft_model(gpt2(), SubspaceConfig(method="lora")))}
    assert ends == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    names = adapted(get_peft_model(t5(), SubspaceConfig(method="ia3")))
    assert len(names) == 2 * 3 + 2  # key, value and wi in encoder and decoder, key and value across
    names = adapted(get_peft_model(gpt2(), SubspaceConfig(method="bitfit")))
    assert names.keys() == with_bias(gpt2())


@pytest.mark.parametrize("pattern", [r".*\.1\..*(query|key)", r"bert\.encoder\.layer\.1\.attention\.self\.(query|key)"])
def test_a_regular_expression(bert: Builder, variant: Variant, pattern: str) -> None:
    model = get_peft_model(bert(), variant.config(target_modules=pattern))
    assert adapted(model).keys() == in_layers(["attention.self.query", "attention.self.key"], (1,))


def test_suffixes_and_exclusions(bert: Builder, variant: Variant) -> None:
    config = variant.config(target_modules=["query", "output.dense"], exclude_modules=["attention.output.dense"])
    assert adapted(get_peft_model(bert(), config)).keys() == in_layers(["attention.self.query", "output.dense"])
    config = variant.config(target_modules=["query", "key"], exclude_modules=r".*layer\.0.*")
    assert adapted(get_peft_model(bert(), config)).keys() == in_layers(SIX[:2], (1,))
    config = variant.config(target_modules=["query"], modules_to_save=["layer.1"])
    assert adapted(get_peft_model(bert(), config)).keys() == in_layers(["attention.self.query"], (0,))


@pytest.mark.parametrize(
    "limits", [{"layers_to_transform": [1]}, {"layers_to_transform": 1, "layers_pattern": "layer"}]
)
def test_layers_to_transform(bert: Builder, variant: Variant, limits: dict[str, Any]) -> None:
    model = get_peft_model(bert(), variant.config(target_modules=["query", "key"], **limits))
    assert adapted(model).keys() == in_layers(["attention.self.query", "attention.self.key"], (1,))
    placed = adapted(get_peft_model(bert(), variant.config(**limits))).keys()
    everywhere = adapted(get_peft_model(bert(), variant.config())).keys()
    assert placed == {name for name in everywhere if name.startswith(f"{ENCODER}.1.")}
    assert len(placed) >= 2


def test_layers_to_transform_do_not_go_with_a_regular_expression() -> None:
    with pytest.raises(SubspaceError, match="`layers_to_transform` cannot be used when `target_modules` is a str"):
        SubspaceConfig(method="ssb", target_modules=".*key", layers_to_transform=[0])
    with pytest.raises(SubspaceError, match="When `layers_pattern` is specified, `layers_to_transform` must"):
        SubspaceConfig(method="ssb", target_modules=["key"], layers_pattern="layer")


def test_rank_and_alpha_patterns(bert: Builder, variant: Variant, batch: dict[str, Tensor]) -> None:
    config = variant.config(
        r=4,
        alpha=8.0,
        target_modules=["query", "key", "value"],
        rank_pattern={"query": 2, r".*layer\.1\..*key": 3},
        alpha_pattern={"value": 1.0},
        init_weights=False,
    )
    model = get_peft_model(bert(), config).eval()
    found = {name: (layer.r["default"], layer.alpha["default"]) for name, layer in adapted(model).items()}
    for layer in (0, 1):
        assert found[f"{ENCODER}.{layer}.attention.self.query"] == (2, 8.0)
        assert found[f"{ENCODER}.{layer}.attention.self.value"] == (4, 1.0)
        assert found[f"{ENCODER}.{layer}.attention.self.key"] == ((3, 8.0) if layer else (4, 8.0))
    for name, layer in adapted(model).items():
        rank = found[name][0]
        for factor, shape in variant.method.formula.shapes.items():
            if factor in variant.method.formula.trainable:
                entries = layer.subspace_params["default"].get("Delta", torch.empty(0)).numel()
                wanted = Sizes(32, 32, rank, entries, 3).of(shape)
                assert layer.subspace_params["default"][factor].shape == wanted
        environment = layer._environment("default")
        assert environment["s"] == found[name][1] / rank
    assert torch.isfinite(model(**batch).logits).all()


def test_the_count_is_the_sum_of_the_declared_counts(bert: Builder, variant: Variant) -> None:
    model = get_peft_model(bert(), variant.config(target_modules=["query", "intermediate.dense"]))
    sizes = {"query": (32, 32), "dense": (32, 48)}
    expected = 0
    for name, layer in adapted(model).items():
        entries = len(layer.subspace_params["default"]["Delta"]) if variant.method.formula.masked else 0
        expected += variant.method.counted(Sizes(*sizes[name.split(".")[-1]], 4, entries, 3))
    assert model.get_nb_trainable_parameters()[0] == expected
    assert expected > 0


def test_a_saved_classifier_is_trained_and_switched(bert: Builder, variant: Variant, batch: dict[str, Tensor]) -> None:
    model: Any = get_peft_model(bert(), variant.config(modules_to_save=["classifier"]))
    model.add_adapter("other", SubspaceConfig(method="lora", r=2, modules_to_save=["classifier"]))
    base = bert()
    labels = torch.tensor([0, 1, 2, 0])
    for name, step in (("default", 0.1), ("other", 0.3)):
        model.set_adapter(name)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=step)
        model.train()(**batch, labels=labels).loss.backward()
        assert all(parameter.grad is not None for parameter in trainable)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    heads = model.base_model.model.classifier
    assert not torch.equal(heads.modules_to_save["default"].weight, heads.modules_to_save["other"].weight)
    assert torch.equal(heads.original_module.weight, base.classifier.weight)
    outputs = []
    with torch.no_grad():
        for name in ("default", "other", "default"):
            model.set_adapter(name)
            outputs.append(model(**batch).logits)
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, base(**batch).logits)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
