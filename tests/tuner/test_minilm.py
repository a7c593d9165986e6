"""The main paths on a real pretrained encoder, all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import Variant

Batch = dict[str, Tensor]

SENTENCES = [
    "The cat sat on the mat.",
    "A feline was resting upon a rug.",
    "Interest rates rose again this quarter.",
    "She sells sea shells by the sea shore, and has done so for as long as anybody there remembers.",
]


@pytest.fixture(scope="module")
def sentences(minilm: Path) -> Batch:
    """Four sentences as tokens."""
    return dict(AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="pt"))


def encoded(model: Any, batch: Batch, **options: Any) -> Tensor:
    """The sentence embeddings."""
    with torch.no_grad():
        hidden = model(**batch, **options).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def encoder(minilm: Path) -> Any:
    return AutoModel.from_pretrained(minilm).eval()


def nudged(model: Any) -> Any:
    """Move the factors a little, as training does."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "subspace_params" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_the_start_the_merge_and_the_file(minilm: Path, variant: Variant, sentences: Batch, tmp_path: Path) -> None:
    base = encoded(encoder(minilm), sentences)
    assert base[0] @ base[1] > base[0] @ base[2] + 0.2  # the real weights are there
    config = variant.config(r=8, layers_to_transform=[0, 5], task_type="FEATURE_EXTRACTION")
    model: Any = get_peft_model(encoder(minilm), config).eval()
    assert {name.split(".layer.")[1][0] for name, m in model.named_modules() if isinstance(m, SubspaceLayer)} == {
        "0",
        "5",
    }
    torch.testing.assert_close(encoded(model, sentences), base, rtol=1e-4, atol=1e-5)
    tuned = encoded(nudged(model), sentences)
    assert (tuned - base).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path)
    assert torch.equal(encoded(loaded, sentences), tuned)
    if variant.linear:
        model.merge_adapter()
        torch.testing.assert_close(encoded(model, sentences), tuned, rtol=1e-3, atol=1e-5)
        model.unmerge_adapter()
    assert torch.equal(encoded(model, sentences), tuned)
    assert torch.equal(encoded(model.unload(), sentences), base)


def test_three_methods_in_one_batch(minilm: Path, sentences: Batch) -> None:
    model: Any = get_peft_model(encoder(minilm), SubspaceConfig(method="ssb"), adapter_name="first")
    model.add_adapter("second", SubspaceConfig(method="lora", r=4))
    model.add_adapter("third", SubspaceConfig(formula="D1 @ W @ D2 + s * A @ B", r=4))
    nudged(model)
    names = ["third", "__base__", "first", "second"]
    mixed = encoded(model, sentences, adapter_names=names)
    with model.disable_adapter():
        alone = {"__base__": encoded(model, sentences)}
    for name in ("first", "second", "third"):
        model.set_adapter(name)
        alone[name] = encoded(model, sentences)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-6)
        assert all((mixed[row] - alone[other][row]).abs().max() > 1e-4 for other in alone.keys() - {name})


def test_the_counts_of_the_paper(minilm: Path) -> None:
    """Six layers of hidden size 384 and 1536."""
    counts = {
        "ssl": 6 * (384 + 384 + 384),
        "ia3": 6 * (384 + 384 + 1536),
        "ssb": 6 * (2 * 384 + 2 * 384 + 384 + 1536),
        "sam_parser": 6 * 6 * 384,
        "lora": 6 * 8 * (4 * 2 * 384 + 2 * (384 + 1536)),
    }
    for name, count in counts.items():
        with torch.device("meta"):
            empty = AutoModel.from_config(AutoConfig.from_pretrained(minilm))
        model = get_peft_model(empty, SubspaceConfig(method=name, r=8))
        assert model.get_nb_trainable_parameters()[0] == count, name
