"""Derived learning rates of whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from subspace_tuning import SubspaceConfig, methods
from subspace_tuning.counting.rates import rates_in
from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.meta import architecture_of
from subspace_tuning.theory.rates import RATE
from subspace_tuning.tuner.rates import Rates, derived_rate

BERT = BertConfig(vocab_size=60, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A model with weights of the size of trained ones."""
    torch.manual_seed(0)
    model = BertModel(BERT)
    for parameter in model.parameters():
        parameter.data *= 10 if parameter.ndim > 1 else 1
    return model


@pytest.fixture(scope="module")
def rates(bert: BertModel) -> Rates:
    return Rates(bert)


def test_the_reference_keeps_its_rate(rates: Rates) -> None:
    assert rates.derived(SubspaceConfig(method="lora", r=8, alpha=16)) == RATE


CHOSEN = [known.name for known in methods.every() if known.needs_calibration]
PLACED = {known.name for known in methods.every()} - {*CHOSEN, "xattn"}  # which wants a cross-attention


@pytest.mark.parametrize("name", sorted(PLACED))
def test_every_method_has_a_rate_and_nothing_changes(name: str, bert: BertModel, rates: Rates) -> None:
    config, state = SubspaceConfig(method=name, r=4), torch.random.get_rng_state()
    before, written = {key: value.clone() for key, value in bert.state_dict().items()}, repr(config)
    rate = rates.derived(config)
    assert 1e-6 < rate < 10 and float(f"{rate:.1e}") == rate
    assert repr(config) == written and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in bert.state_dict().items())


def test_a_larger_scale_takes_a_lower_rate(rates: Rates) -> None:
    found = [rates.derived(SubspaceConfig(method="lora", r=8, alpha=alpha)) for alpha in (4, 8, 16, 32, 64)]
    assert found == sorted(found, reverse=True) and len(set(found)) == 5


def test_a_single_rate_is_that_of_many(bert: BertModel, rates: Rates) -> None:
    config = SubspaceConfig(method="pissa", r=4)
    assert derived_rate(config, bert) == rates.derived(config)


def test_weights_on_disk_give_the_rates_of_the_loaded_model(bert: BertModel, rates: Rates, tmp_path: Path) -> None:
    bert.save_pretrained(tmp_path)
    found = rates_in(str(tmp_path), architecture_of(str(tmp_path)))
    assert found.from_weights
    for name in ("ssb", "pissa", "houlsby"):
        assert found.derived(SubspaceConfig(method=name)) == rates.derived(SubspaceConfig(method=name))


def test_shapes_alone_give_a_rate(rates: Rates) -> None:
    with torch.device("meta"):
        model = BertModel(BERT)
    for name in ("lora", "ssb", "pissa"):
        config = SubspaceConfig(method=name)
        assert 1 / 10 < derived_rate(config, model) / rates.derived(config) < 10


def test_a_model_without_blocks_is_compared_with_lora_on_the_same_modules() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    config = SubspaceConfig(method="lora", target_modules=["0"])
    assert derived_rate(config, model) == RATE


def test_a_convolution_has_a_rate_with_gradients_off_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3))
    config = SubspaceConfig(method="flora", r=2, target_modules=["0", "1"])
    with torch.no_grad():
        assert derived_rate(config, model) == Rates(model).derived(config) > 0


def test_embeddings_alone_are_refused(bert: BertModel, rates: Rates) -> None:
    with pytest.raises(SubspaceError, match="only embeddings"):
        rates.derived(SubspaceConfig(method="lora", target_modules=["word_embeddings"]))


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_chosen_by_gradients_is_refused(name: str, rates: Rates) -> None:
    with pytest.raises(SubspaceError, match="chosen from data"):
        rates.derived(SubspaceConfig(method=name))
