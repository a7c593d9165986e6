"""Batches in which every row has its own adapter: each row gets what it gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from subspace_tuning import SubspaceConfig, SubspaceError

from .conftest import Builder, Variant

Batch = dict[str, Tensor]

BASE = "__base__"
NAMES = ["default", "lora", BASE, "svdiff", "lora", "default", "svdiff", BASE]
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def several(build: Builder, config: SubspaceConfig) -> Any:
    """A model with the given adapter and two more, of different methods and on different modules."""
    model: Any = get_peft_model(build(), config)
    for name in ("lora", "svdiff"):
        model.add_adapter(name, SubspaceConfig(method=name, r=3, init_weights=False))
    return model.eval()


@pytest.fixture
def eight(batch: Batch) -> Batch:
    """Eight rows, without padding."""
    tokens = torch.cat([batch["input_ids"], batch["input_ids"].flip(1)])
    return {"input_ids": tokens}


def one_by_one(model: Any, batch: Batch, names: list[str]) -> Tensor:
    rows = []
    for i, name in enumerate(names):
        inputs = {key: value[i : i + 1] for key, value in batch.items()}
        if name == BASE:
            with model.disable_adapter():
                rows.append(model(**inputs).logits)
        else:
            model.set_adapter(name)
            rows.append(model(**inputs).logits)
    return torch.cat(rows)


@torch.no_grad()
def test_every_row_has_its_own_adapter(bert: Builder, variant: Variant, eight: Batch) -> None:
    model = several(bert, variant.config(init_weights=False)).double()  # other rows, another order of the sums
    expected = one_by_one(model, eight, NAMES)
    assert (expected[0] - expected[2]).abs().max() > 1e-3
    torch.testing.assert_close(model(**eight, adapter_names=NAMES).logits, expected, **ROUNDING)
    backwards = {key: value.flip(0) for key, value in eight.items()}
    torch.testing.assert_close(
        model(**backwards, adapter_names=NAMES[::-1]).logits, expected.flip(0), **ROUNDING
    )  # fmt: skip


@torch.no_grad()
def test_a_batch_of_one_adapter_is_exactly_that_adapter(bert: Builder, variant: Variant, eight: Batch) -> None:
    model = several(bert, variant.config(init_weights=False))
    model.set_adapter("lora")
    for name in ("default", BASE):
        mixed = model(**eight, adapter_names=[name] * 8).logits
        if name == BASE:
            with model.disable_adapter():
                expected = model(**eight).logits
        else:
            model.set_adapter(name)
            expected = model(**eight).logits
            model.set_adapter("lora")
        assert torch.equal(mixed, expected)
    assert model.active_adapters == ["lora"]


@torch.no_grad()
def test_convolutions_mix(conv_net: Builder, matrix: Variant) -> None:
    targets = ["first", "second", "head"]
    model: Any = get_peft_model(conv_net(), matrix.config(r=2, init_weights=False, target_modules=targets)).eval()
    model.add_adapter("other", SubspaceConfig(method="dora", r=2, init_weights=False, target_modules=targets))
    x = torch.randn(3, 4, 9, 9)
    base = conv_net()(x[1:2])
    model.set_adapter("other")
    other = model(x[2:3])
    model.set_adapter("default")
    mixed = model(x, adapter_names=["default", BASE, "other"])
    torch.testing.assert_close(mixed, torch.cat([model(x[:1]), base, other]), **ROUNDING)


def generated(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False} | options
    result: Tensor = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
    return result


@pytest.mark.parametrize(("architecture", "beams"), [("gpt2", 2), ("t5", 3)])
def test_generation_with_beams(
    request: pytest.FixtureRequest, architecture: str, beams: int, matrix: Variant, batch: Batch
) -> None:
    build: Builder = request.getfixturevalue(architecture)
    model = several(build, matrix.config(init_weights=False))
    names = ["default", BASE, "lora", "svdiff"]
    tokens = batch["input_ids"]
    mixed = generated(model, tokens, num_beams=beams, adapter_names=names)
    rows = []
    for i, name in enumerate(names):
        if name == BASE:
            with model.disable_adapter():
                rows.append(generated(model, tokens[i : i + 1], num_beams=beams))
        else:
            model.set_adapter(name)
            rows.append(generated(model, tokens[i : i + 1], num_beams=beams))
    assert torch.equal(mixed, torch.cat(rows))
    assert len({tuple(row.tolist()) for row in generated(model, tokens[:1].repeat(4, 1), adapter_names=names)}) > 1


def test_a_saved_module_is_mixed_too(bert: Builder, eight: Batch) -> None:
    model: Any = get_peft_model(
        bert(), SubspaceConfig(method="ssb", init_weights=False, modules_to_save=["classifier"])
    )
    model.add_adapter("lora", SubspaceConfig(method="lora", r=3, init_weights=False))
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
        model.eval()
        names = ["default", "lora", BASE, "default"] * 2
        expected = one_by_one(model, eight, names)
        torch.testing.assert_close(model(**eight, adapter_names=names).logits, expected, **ROUNDING)


def test_what_a_mixed_batch_refuses(bert: Builder, eight: Batch) -> None:
    model = several(bert, SubspaceConfig(method="ssb", init_weights=False))
    before = model(**eight).logits
    with pytest.raises(
        SubspaceError, match=r"^Trying to infer with non-existing adapter\(s\): loro; did you mean lora\?"
    ):
        model(**eight, adapter_names=["loro"] * 8)
    with pytest.raises(
        SubspaceError, match=r"^Length of `adapter_names` should be the same as the number of inputs, but got 3 and 8"
    ):
        model(**eight, adapter_names=["lora"] * 3)
    model.train()
    with pytest.raises(SubspaceError, match=r"^Cannot pass `adapter_names` when the model is in training mode"):
        model(**eight, adapter_names=NAMES)
    model.eval()
    model.merge_adapter()
    with pytest.raises(SubspaceError, match=r"^Cannot pass `adapter_names` when there are merged adapters"):
        model(**eight, adapter_names=NAMES)
    model.unmerge_adapter()
    assert torch.equal(model(**eight).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_saved_head_of_several_modules_is_mixed_too(eight: Batch) -> None:
    """RoBERTa's head is a dense layer and a projection, which peft itself does not mix."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = RobertaConfig(vocab_size=50, max_position_embeddings=40, num_labels=3, initializer_range=0.2, **shape)
    saved = SubspaceConfig(method="ssb", init_weights=False, modules_to_save=["classifier"])
    model: Any = get_peft_model(RobertaForSequenceClassification(config), saved)
    model.add_adapter("other", SubspaceConfig(method="lora", init_weights=False, modules_to_save=["classifier"]))
    model.add_adapter("lora", SubspaceConfig(method="lora", r=3, init_weights=False))
    with torch.no_grad():
        for name, head in model.base_model.model.classifier.modules_to_save.items():
            head.out_proj.weight.add_(1.0 if name == "other" else -1.0)
        model.double().eval()
        names = ["default", "lora", BASE, "other"] * 2
        expected = one_by_one(model, eight, names)
        assert len(expected[:4].round(decimals=3).unique(dim=0)) == 4
        for active in ("default", "lora"):
            model.set_adapter(active)
            torch.testing.assert_close(model(**eight, adapter_names=names).logits, expected, **ROUNDING)
    assert not model.base_model.model.classifier._forward_hooks
