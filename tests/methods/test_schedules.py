"""Schedules: what they do to factors, that they remember all, and that AdaLoRA prunes as peft's does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, methods
from subspace_tuning.methods.schedules import SCHEDULES
from subspace_tuning.methods.schedules.dynamic_mask import renew
from subspace_tuning.methods.schedules.flexlora import evenness_of
from subspace_tuning.tuner.scheduling import adapted as layers_of
from subspace_tuning.tuner.scheduling import schedule, sites

STEPS = 30


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 12)
        self.second = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def adapted(method: str, r: int = 6, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = SubspaceConfig(method=method, r=r, alpha=2.0 * r, target_modules=["first", "second"], **fields)
    if config.resolved.needs_calibration:
        shapes = {"first": [9, 10, 12], "second": [9, 12, 8]}
        drawn = {name: torch.randperm(n * m)[:p] for name, (p, n, m) in shapes.items()}
        config = config.with_choice(entries=shapes, positions=drawn)
    return get_peft_model(Net(), config)


def scores_of(model: Any, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {site.name: torch.rand(site.weight.shape, generator=generator) for site in sites(model)}


def run(model: Any, first: int, last: int, factor_schedule: Any, optimizer: Any) -> None:
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 10, generator=generator), torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        factor_schedule.step(step, optimizer)


def begin(method: str, **options: float) -> tuple[Any, Any, Any]:
    fields = {"schedule": dict(options)} if options else {}
    model = adapted(method, **fields)
    clock = {"step": 0}

    def scores() -> dict[str, Tensor]:
        clock["step"] += 1
        return scores_of(model, 100)

    factor_schedule = schedule(model, STEPS, scores)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, factor_schedule, optimizer


SCHEDULED = [known.name for known in methods.every() if known.schedule]


def options_of(method: str) -> dict[str, float]:
    return {"launch": 7, "directions": 3} if method == "lora_dash" else {"interval": 3}


def test_every_schedule_is_a_methods() -> None:
    assert {methods.get(name).schedule for name in SCHEDULED} == set(SCHEDULES)


@pytest.mark.parametrize("method", SCHEDULED)
@pytest.mark.parametrize("cut", [3, 7, 12, 25])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(method: str, cut: int) -> None:
    model, factor_schedule, optimizer = begin(method, **options_of(method))
    run(model, 1, STEPS, factor_schedule, optimizer)
    half, schedule_1, optimizer_1 = begin(method, **options_of(method))
    run(half, 1, cut, schedule_1, optimizer_1)
    again, schedule_2, optimizer_2 = begin(method, **options_of(method))
    again.load_state_dict(half.state_dict())
    optimizer_2.load_state_dict(optimizer_1.state_dict())
    schedule_2.load_state_dict({name: tensor.clone() for name, tensor in schedule_1.state_dict().items()})
    run(again, cut + 1, STEPS, schedule_2, optimizer_2)
    ended = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ended[name]), name
    assert factor_schedule.report() == schedule_2.report()


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_schedule_longer_than_the_run_is_refused(method: str) -> None:
    given = {"launch": 30} if method == "lora_dash" else {"interval": 31} if "fish" in method else {"t_init": 30}
    with pytest.raises(SubspaceError, match=r"the schedule is longer than the run: .* [34][0-9] optimiser steps of 30"):
        begin(method, **given)


def test_adalora_prunes_the_triplets_that_peft_prunes() -> None:
    """The same gradients, step by step, give the same zeros."""
    ours, factor_schedule, optimizer = begin("adalora", target_rank=2, t_init=4, t_final=8, interval=2)
    torch.manual_seed(0)
    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=4, tfinal=8, deltaT=2, total_step=STEPS, target_modules=["first", "second"]
    )
    theirs: Any = get_peft_model(Net(), config)
    names = {name.removeprefix("base_model.model."): layer for name, layer in layers_of(ours).items()}
    pairs = [(names[name], getattr(theirs.base_model.model, name)) for name in ("first", "second")]
    pruned = 0
    for step in range(1, STEPS + 1):
        moved: dict[Any, Tensor] = {}
        schedule_step = factor_schedule.step

        def remember(number: int, _: Any, schedule_step: Any = schedule_step, moved: dict[Any, Tensor] = moved) -> None:
            for layer in names.values():  # what the schedule sees: the factors right after the optimiser's step
                moved.update({p: p.detach().clone() for p in layer.subspace_params["default"].values()})
            schedule_step(number)

        run(ours, step, step, type("Spy", (), {"step": staticmethod(remember)})(), optimizer)
        for layer, peft_layer in pairs:  # the state and gradient of our step, as peft names it
            own = layer.subspace_params["default"]
            for mine, his in (("A", "lora_A"), ("D", "lora_E"), ("B", "lora_B")):
                parameter = getattr(peft_layer, his)["default"]
                parameter.data.copy_(_as_peft(mine, moved[own[mine]]))
                parameter.grad = _as_peft(mine, own[mine].grad).clone()
        masked = [layer.subspace_params["default"]["D"].data == 0 for layer, _ in pairs]
        theirs.base_model.update_and_allocate(step)
        for zero, (_, peft_layer) in zip(masked, pairs, strict=True):
            assert torch.equal(peft_layer.lora_E["default"].data.flatten() == 0, zero)
        pruned = sum(int(zero.sum()) for zero in masked)
    assert pruned == 2 * 6 - 2 * 2


def _as_peft(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, None] if name == "D" else tensor.T


def test_adalora_keeps_its_budget() -> None:
    model, factor_schedule, optimizer = begin("adalora", target_rank=3, t_init=5, t_final=10, interval=1)
    budgets = [factor_schedule.budget(step) for step in range(1, STEPS + 1)]
    assert budgets[0] == 12 and budgets[19:] == [6] * 11
    assert all(a >= b for a, b in itertools.pairwise(budgets))
    run(model, 1, STEPS, factor_schedule, optimizer)
    assert sum(factor_schedule.report()["ranks"].values()) == 6


def test_flexlora_moves_rank_both_ways_and_keeps_the_sum() -> None:
    model, factor_schedule, optimizer = begin("flexlora", target_rank=3, t_init=2, t_final=4, interval=1)
    with torch.no_grad():
        for index, site in enumerate(sites(model)):  # one uses a single direction, the other all alike
            site.parameters["D"].copy_(torch.tensor([1.0, 1e-3, 1e-3, 0, 0, 0]) if index else torch.ones(6))
    run(model, 1, 3, factor_schedule, optimizer)
    assert list(factor_schedule.report()["ranks"].values()) == [4, 2]
    for site in sites(model):
        assert int((site.parameters["D"] != 0).sum()) <= factor_schedule.report()["ranks"][site.name]
    run(model, 4, STEPS, factor_schedule, optimizer)
    ranks = factor_schedule.report()["ranks"].values()
    assert sum(ranks) == 6 and min(ranks) >= 1


def test_evenness_is_defined_everywhere() -> None:
    active = torch.tensor([True, True, False])
    assert evenness_of(torch.tensor([2.0, -2.0, 9.0]), active) == pytest.approx(1.0)
    assert evenness_of(torch.tensor([2.0, 0.0, 9.0]), active) == pytest.approx(0.0)
    assert evenness_of(torch.zeros(3), active) == 1.0
    assert evenness_of(torch.ones(3), torch.tensor([True, False, False])) == 1.0


def test_a_renewed_mask_keeps_the_places_of_what_stays() -> None:
    model = adapted("fish_dip")
    site = sites(model)[0]
    before, scores = site.constants["M"].clone(), torch.rand(site.weight.shape)
    with torch.no_grad():
        site.parameters["Delta"].copy_(torch.arange(1.0, 10.0))
        scores.view(-1)[before[:4]] += 1.0  # four stay
        exchanged = renew(site, scores)
    after = site.constants["M"]
    assert torch.equal(after[:4], before[:4])
    assert torch.equal(site.parameters["Delta"][:4], torch.arange(1.0, 5.0))
    assert exchanged == int((after != before).sum())
    assert not site.parameters["Delta"][after != before].any()
    assert set(after.tolist()) == set(scores.flatten().topk(9).indices.tolist())


def test_lora_dash_is_lora_until_its_launch() -> None:
    dash, factor_schedule, optimizer = begin("lora_dash", launch=7, directions=3)
    torch.manual_seed(0)
    lora = get_peft_model(Net(), SubspaceConfig(method="lora", r=6, alpha=12.0, target_modules=["first", "second"]))
    other = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    run(dash, 1, 7, factor_schedule, optimizer)
    run(lora, 1, 7, type("None", (), {"step": lambda self, step, optimizer: None})(), other)
    for ours, theirs in zip(layers_of(dash).values(), layers_of(lora).values(), strict=True):
        for name in ("A", "B"):
            torch.testing.assert_close(ours.factor(name), theirs.factor(name), rtol=1e-6, atol=1e-7)
        assert not ours.factor("d").any()
    run(dash, 8, 9, factor_schedule, optimizer)
    assert all(bool(layer.factor("d").all()) for layer in layers_of(dash).values())
