"""A full-rank extraction is the tuned model, in every architecture; what it does not carry is named."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from subspace_tuning import SubspaceConfig
from subspace_tuning.adapters.extract import LEFT_OUT, Extraction, extract
from subspace_tuning.models.checkpoint import Checkpoint
from subspace_tuning.models.heads import outermost
from subspace_tuning.tuner.targets import place, targets

from ..tuner.test_roles import CASES, Case

HEADS = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
WHOLE = Extraction(SubspaceConfig(method="lora"), energy=1.0)
OFTEN = (
    "bert",
    "roberta",
    "gpt_neox",
    "vit",
    "t5",
    "clip",
    "llama",
)  # the others take longer together than they tell anew


def build(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    found = next((mapping[type(config)] for mapping in HEADS if type(config) in mapping), None)
    if hasattr(config, "text_config"):  # several towers, whose heads want more of a config than sizes
        found = None
    model = AutoModel.from_config(config) if found is None else found(config)
    for name, parameter in model.named_parameters():  # some architectures start with zeros
        if not torch.isfinite(parameter).all() or parameter.std() == 0:
            nn.init.normal_(parameter, 1.0 if "norm" in name.lower() else 0.0, 0.02)
    return model.eval()


def stacked(model: Any) -> list[str]:
    """The parameters that hold all experts of a layer."""
    named = model.named_parameters()
    return [name for name, parameter in named if parameter.dim() == 3 and ".experts." in name]


def warned_of(experts: list[str]) -> AbstractContextManager[object]:
    return pytest.warns(UserWarning, match="parameters that no linear layer holds") if experts else nullcontext()


def tune(model: Any) -> None:
    """Change the matrices that LoRA adapts, and the output layer."""
    config = SubspaceConfig(method="lora")
    place(model, config)
    modules = [module for _, module in targets(model, config)]
    with suppress(AttributeError, NotImplementedError):
        modules += [model.get_output_embeddings()]
    with torch.no_grad():
        for module in modules:
            if module is not None:
                module.weight += 0.1 * torch.randn_like(module.weight)


@pytest.mark.parametrize(
    "case",
    [case if case.model_type in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_full_rank_extraction_is_the_tuned_model(case: Case, tmp_path: Path) -> None:
    model = build(case.tiny_config())
    model.save_pretrained(tmp_path / "base")
    tune(model)
    model.save_pretrained(tmp_path / "tuned")
    with warned_of(stacked(model)):
        extract(Checkpoint(str(tmp_path / "base")), Checkpoint(str(tmp_path / "tuned")), WHOLE, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / LEFT_OUT).read_text()) == []
    base = type(model).from_pretrained(tmp_path / "base", dtype=torch.float32)
    with warned_of(stacked(model)):
        merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    found = merged.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


MOE = ("gpt_oss", "llama4", "llama4_text", "mixtral", "qwen2_moe", "qwen3_moe")
EXPERTS = [case for case in CASES if case.model_type in MOE and "mlp_only_layers" not in case.config]


@pytest.mark.parametrize(
    "case",
    [case if case.model_type == "mixtral" else pytest.param(case, marks=pytest.mark.slow) for case in EXPERTS],
    ids=str,
)
def test_stacked_experts_that_changed_are_named_with_their_size(case: Case, tmp_path: Path) -> None:
    model = build(case.tiny_config())
    model.save_pretrained(tmp_path / "base")
    experts = stacked(model)
    with torch.no_grad():
        for name in experts:
            model.get_parameter(name).mul_(1.5)
    model.save_pretrained(tmp_path / "tuned")
    with warned_of(experts):
        extract(Checkpoint(str(tmp_path / "base")), Checkpoint(str(tmp_path / "tuned")), WHOLE, tmp_path / "adapter")
    lost = json.loads((tmp_path / "adapter" / LEFT_OUT).read_text())
    named = {one["tensor"]: (one["numbers"], round(one["change"], 4)) for one in lost}
    assert experts and named == {name: (model.get_parameter(name).numel(), 0.5) for name in experts}


def llama(**fields: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | fields)).eval()


IDS = torch.tensor([[3, 5, 7, 9, 11]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["lm_head", "lm_head.decoder"], ["lm_head"]),
        (["decoder", "lm_head", "lm_head"], ["lm_head"]),
        (["lm_head.decoder", "lm_head.dense"], ["lm_head.decoder", "lm_head.dense"]),
        (["lm_head", "word_embeddings"], ["lm_head", "word_embeddings"]),
        (["query", "attention"], ["attention"]),
    ],
)
def test_only_the_outermost_of_nested_modules_is_kept(names: list[str], kept: list[str]) -> None:
    case = next(case for case in CASES if case.model_type == "roberta")
    assert outermost(build(case.tiny_config()), names) == kept


@pytest.mark.parametrize("where", [None, ["embed_tokens"], ["lm_head"], ["q_proj"]])
def test_a_shared_matrix_is_taken_over_on_both_sides(where: list[str] | None, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.3 * torch.randn(30, 16)
    model.save_pretrained(tmp_path / "tuned")
    wanted = Extraction(SubspaceConfig(method="lora", target_modules=where), energy=1.0)
    extract(Checkpoint(str(tmp_path / "base")), Checkpoint(str(tmp_path / "tuned")), wanted, tmp_path / "adapter")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval())
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_go_along_whole(tied: bool, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(33)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.1 * torch.randn(24, 16)
    model.save_pretrained(tmp_path / "tuned")
    extract(Checkpoint(str(tmp_path / "base")), Checkpoint(str(tmp_path / "tuned")), WHOLE, tmp_path / "adapter")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(33)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval())
    assert found.shape[-1] == 33
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)


def test_what_is_not_carried_is_named_with_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.embed_tokens.weight *= 1.5
        model.model.norm.weight *= 1.25
        model.model.layers[0].self_attn.q_proj.weight *= 1.1
    model.save_pretrained(tmp_path / "tuned")
    extract(Checkpoint(str(tmp_path / "base")), Checkpoint(str(tmp_path / "tuned")), WHOLE, tmp_path / "adapter")
    lost = json.loads((tmp_path / "adapter" / LEFT_OUT).read_text())
    assert {one["tensor"]: (one["numbers"], round(one["change"], 4)) for one in lost} == {
        "model.embed_tokens.weight": (30 * 16, 0.5),
        "model.norm.weight": (16, 0.25),
    }
