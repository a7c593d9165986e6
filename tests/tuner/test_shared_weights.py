"""Weights that several modules hold, and weights that are computed: merging changes the adapted module alone."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from transformers import BartConfig, BartForConditionalGeneration

from subspace_tuning import SubspaceConfig, SubspaceLayer

from .conftest import Batch, Builder, Variant, deterministic, logits

ROUNDING = {"rtol": 1e-4, "atol": 2e-5}


class Tied(nn.Module):
    """One parameter in three layers, and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.third.weight = self.first.weight
        self.again = self.twice = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third, self.again, self.twice):
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("targets", [["first"], ["third", "again"], ["first", "second", "third", "again"]])
def test_merging_a_shared_weight(linear: Variant, targets: list[str]) -> None:
    torch.manual_seed(0)
    net = Tied()
    shared, twice, bits = net.first.weight, net.twice, net.first.weight.detach().clone()
    model: Any = get_peft_model(net, linear.config(r=2, target_modules=targets, init_weights=False)).eval()
    x = torch.randn(5, 8)
    expected = model(x)
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    assert len(layers) == len(targets)
    for merging, unmerging in itertools.islice(itertools.product(itertools.permutations(layers), repeat=2), 0, 576, 97):
        for layer in merging:
            layer.merge()
        torch.testing.assert_close(model(x), expected, **ROUNDING)
        assert torch.equal(shared, bits)
        for layer in unmerging:
            layer.unmerge()
        assert torch.equal(model(x), expected)
    for name in ("first", "second", "third"):
        module = getattr(net, name)
        assert (module.get_base_layer() if isinstance(module, SubspaceLayer) else module).weight is shared
    assert net.twice is twice or net.again is twice
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(merged(x), expected, **ROUNDING)
    with model.disable_adapter():
        torch.manual_seed(0)
        assert torch.equal(model(x), Tied()(x))


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": old_spectral_norm,
    "pruned": lambda module: prune.random_unstructured(module, "weight", 0.3),
}


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_merging_a_computed_weight(linear: Variant, how: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(lin=COMPUTED[how](nn.Linear(8, 8)), act=nn.Tanh())).eval()

    net, x = build(), torch.randn(5, 8)
    plain, keys = net(x), list(net.state_dict())
    start: Any = get_peft_model(build(), linear.config(r=2, target_modules=["lin"])).eval()
    torch.testing.assert_close(start(x), plain, **ROUNDING)
    model: Any = get_peft_model(net, linear.config(r=2, target_modules=["lin"], init_weights=False)).eval()
    expected = model(x)
    assert not torch.allclose(expected, plain, atol=1e-3)
    for _ in range(2):
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected, **ROUNDING)
        model.unmerge_adapter()
        assert torch.equal(model(x), expected)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    assert list(net.lin.get_base_layer().state_dict()) == [key.removeprefix("lin.") for key in keys]  # type: ignore[union-attr,operator]
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(x), expected, **ROUNDING)
    assert set(merged.state_dict()) == {"lin.weight", "lin.bias"}


@pytest.fixture(scope="session")
def bart() -> Builder:
    """A small BART: one weight for both embeddings and the output layer."""
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads"), 2
    )
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, init_std=0.3, **sizes,
    )  # fmt: skip
    return deterministic(lambda: BartForConditionalGeneration(config))


HEADS = [
    ("gpt2", "wte"),
    ("gpt2", "lm_head"),
    ("llama", "lm_head"),
    ("llama", "embed_tokens"),
    ("t5", "lm_head"),
    ("bart", "lm_head"),
]


@pytest.mark.parametrize(("architecture", "target"), HEADS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_merged_model_with_a_tied_weight_is_saved_and_loaded(
    request: pytest.FixtureRequest,
    architecture: str,
    target: str,
    batch: Batch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = request.getfixturevalue(architecture)()
    monkeypatch.setattr(base.config, "tie_word_embeddings", True)  # put back afterwards: models share the config
    base.tie_weights()
    if base.config.is_encoder_decoder:
        batch = batch | {"decoder_input_ids": batch["input_ids"][:, :3]}
    model: Any = get_peft_model(base, SubspaceConfig(method="ssb", target_modules=[target], init_weights=False)).eval()
    expected = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model, batch), expected)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = model.merge_and_unload()
    told = [str(warning.message) for warning in caught if "tie" in str(warning.message)]
    assert len(told) == 1 and "no longer tied" in told[0]
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(merged, batch))


def test_merging_a_computed_weight_in_groups(linear: Variant) -> None:
    """As the convolution for positions in wav2vec2, whose norms are those of the window's places."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        conv = parametrizations.weight_norm(nn.Conv1d(8, 8, 4, padding=2, groups=2), dim=2)
        return nn.Sequential(OrderedDict(conv=conv, act=nn.Tanh())).eval()

    x = torch.randn(3, 8, 12)
    plain = build()(x)
    model: Any = get_peft_model(build(), linear.config(r=2, target_modules=["conv"], init_weights=False)).eval()
    expected = model(x)
    assert not torch.allclose(expected, plain, atol=1e-3)
    for _ in range(2):
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected, **ROUNDING)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.merge_and_unload(safe_merge=True)(x), expected, **ROUNDING)
