"""Choosing from data: masks by Fisher information, low rank or sparse by sensitivity, biases by importance."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, calibrate, methods

from .conftest import Batch, Builder, logits

NEED_DATA = [known.name for known in methods.every() if known.needs_calibration]


@pytest.fixture
def batches(batch: Batch) -> list[dict[str, Tensor]]:
    """Two batches with labels."""
    labelled = batch | {"labels": torch.tensor([0, 1, 2, 0])}
    return [labelled, {name: tensor.flip(0) for name, tensor in labelled.items()}]


def layers_of(model: Any) -> dict[str, SubspaceLayer]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer)
    }


def squares(model: Any, batches: list[dict[str, Tensor]], kind: str) -> dict[str, Tensor]:
    """The mean squared gradient of single examples, the plain way."""
    parameters = {name: p for name, p in model.named_parameters() if name.endswith(f".{kind}")}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    for batch in batches:
        for i in range(len(batch["labels"])):
            model.zero_grad()
            model(**{name: tensor[i : i + 1] for name, tensor in batch.items()}).loss.backward()
            count += 1
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad**2
    return {name.removesuffix(f".{kind}"): total / count for name, total in sums.items()}


def test_the_methods_that_need_data() -> None:
    assert set(NEED_DATA) == {"fishmask", "fish_dip", "spt", "s_bitfit"}


def test_a_replaced_config_keeps_its_masks(bert: Builder, batches: list[dict[str, Tensor]]) -> None:
    config = calibrate(bert(), SubspaceConfig(method="fishmask"), batches)
    slower = dataclasses.replace(config, alpha=8.0)
    for given in (slower, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert given.positions is not None and config.positions is not None
        assert all(torch.equal(given.positions[name], mask) for name, mask in config.positions.items())
    with pytest.raises(SubspaceError, match=r"positions = .* is not a mapping from modules to tensors"):
        dataclasses.replace(config, positions={"query": [1, 2]})


@pytest.mark.parametrize("method", NEED_DATA)
def test_without_data_they_are_refused_in_one_line(method: str, bert: Builder) -> None:
    with pytest.raises(SubspaceError, match=r"chooses what it trains from data: config = calibrate\(model") as caught:
        get_peft_model(bert(), SubspaceConfig(method=method))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["fishmask", "fish_dip"])
def test_the_entries_with_the_largest_fisher_information(
    method: str, bert: Builder, batches: list[dict[str, Tensor]]
) -> None:
    base: Any = bert().train()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = calibrate(base, SubspaceConfig(method=method, budget=300), batches)
    assert base.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert not any(parameter.grad is not None for parameter in base.parameters())
    model = get_peft_model(base, config)
    reference: Any = bert()
    fisher = squares(reference.eval(), batches, "weight")
    chosen, left = [], []
    for name, layer in layers_of(model).items():
        mask = torch.zeros(layer.frozen_weight.numel(), dtype=torch.bool)
        mask[layer.subspace_constants["default"].M] = True  # type: ignore[index,union-attr]
        scores = fisher[name].T.flatten()
        chosen.append(scores[mask])
        left.append(scores[~mask])
    assert sum(map(len, chosen)) == 300 == model.get_nb_trainable_parameters()[0]
    assert torch.cat(chosen).min() >= torch.cat(left).max() * (1 - 1e-4)


def test_spt_gives_a_low_rank_where_many_entries_are_sensitive(bert: Builder, batches: list[dict[str, Tensor]]) -> None:
    config = calibrate(bert(), SubspaceConfig(method="spt", budget=2500, r=2), batches)
    model: Any = get_peft_model(bert(), config)
    kinds = set()
    for layer in layers_of(model).values():
        entries, rank = layer.subspace_params["default"]["Delta"].numel(), layer.r["default"]
        n, m = layer.in_features, layer.out_features
        assert (entries == 0) == (rank == 2)
        assert entries <= 2 * (n + m)
        kinds.add(rank)
    assert kinds == {0, 2}
    model.train()(**batches[0]).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)


def test_s_bitfit_keeps_the_biases_that_promise_most(bert: Builder, batches: list[dict[str, Tensor]]) -> None:
    config = calibrate(bert(), SubspaceConfig(method="s_bitfit", budget=0.4), batches)
    model = get_peft_model(bert(), config)
    reference: Any = bert()
    importance = {name: float(square.mean()) for name, square in squares(reference.eval(), batches, "bias").items()}
    kept = set(layers_of(model))
    sizes = {name: len(dict(reference.named_modules())[name].bias) for name in importance}
    total = sum(sizes.values())
    assert model.get_nb_trainable_parameters()[0] == sum(sizes[name] for name in kept) <= 0.4 * total
    best = max(importance, key=lambda name: importance[name])
    assert best in kept
    left = set(importance) - kept
    spare = 0.4 * total - sum(sizes[name] for name in kept)
    worst = min(importance[name] for name in kept)
    assert all(importance[name] <= worst or sizes[name] > spare for name in left)


@pytest.mark.parametrize("method", NEED_DATA)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_what_was_chosen_is_saved_and_loaded(
    method: str,
    low_cpu_mem_usage: bool,
    bert: Builder,
    batches: list[dict[str, Tensor]],
    batch: Batch,
    tmp_path: Path,
) -> None:
    config = calibrate(bert(), SubspaceConfig(method=method, budget=0.2), batches)
    model: Any = get_peft_model(bert(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    expected = logits(model, batch)
    assert not torch.equal(expected, logits(bert(), batch))
    model.save_pretrained(tmp_path)
    loaded: Any = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded, batch), expected)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model, batch), expected)


def test_a_mask_that_is_not_loaded_is_not_trained(
    bert: Builder, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    get_peft_model(bert(), calibrate(bert(), SubspaceConfig(method="fishmask"), batches)).save_pretrained(tmp_path)
    empty: Any = get_peft_model(bert(), SubspaceConfig.from_pretrained(str(tmp_path)))
    with pytest.raises(
        SubspaceError,
        match=r"^the mask of adapter 'default' is chosen from data and not loaded: load the adapter, or call calibrate",
    ):
        empty(**batches[0])


def test_bad_input(bert: Builder, batch: Batch, batches: list[dict[str, Tensor]]) -> None:
    def refused(message: str, config: SubspaceConfig, given: Any, **options: Any) -> None:
        with pytest.raises(SubspaceError, match=message) as caught:
            calibrate(bert(), config, given, **options)
        assert "\n" not in str(caught.value)

    refused("method 'lora' chooses nothing from data", SubspaceConfig(method="lora"), batches)
    refused("was given no batches", SubspaceConfig(method="fishmask"), [])
    refused("the model returns no loss for the batches: put `labels`", SubspaceConfig(method="fishmask"), [batch])
    refused(
        r"budget = 10,000,000 is above the [\d,]+ entries", SubspaceConfig(method="fishmask", budget=10**7), batches
    )
    refused("do not agree on the number", SubspaceConfig(method="spt"), [{"a": torch.ones(2), "b": torch.ones(3)}])
    refused("not found in the base model", SubspaceConfig(method="spt", target_modules=["nowhere"]), batches)
    refused("is below the smallest bias", SubspaceConfig(method="s_bitfit", budget=1), batches)
    with pytest.raises(SubspaceError, match=r"budget = 99,999,999 is above the [\d,]+ entries"):
        get_peft_model(bert(), SubspaceConfig(method="pafi", budget=99_999_999))


def test_an_own_loss(bert: Builder, batch: Batch) -> None:
    def loss(model: Any, example: Any) -> Tensor:
        return model(**example).logits.square().sum()  # type: ignore[no-any-return]

    config = calibrate(bert(), SubspaceConfig(method="fishmask", budget=50), [batch], loss)
    assert sum(entries[0] for entries in (config.entries or {}).values()) == 50


def test_a_formula_of_ones_own_with_a_mask(bert: Builder, batches: list[dict[str, Tensor]]) -> None:
    config = calibrate(bert(), SubspaceConfig(formula="D1 @ W + M * Delta", budget=40), batches)
    model = get_peft_model(bert(), config)
    trained = sum(layer.in_features for layer in layers_of(model).values()) + 40
    assert model.get_nb_trainable_parameters()[0] == trained
