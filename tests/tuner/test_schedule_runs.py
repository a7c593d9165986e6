"""Schedules in runs: resumed, moved, skipped, over processes, and forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from subspace_tuning import ScheduleCallback, SubspaceConfig, SubspaceError, methods, schedule
from subspace_tuning.methods.schedules.dynamic_mask import renew
from subspace_tuning.tuner.saving import PATIENCE
from subspace_tuning.tuner.scheduling import sites

SCHEDULED = [known.name for known in methods.every() if known.schedule]
OPTIONS: dict[str, dict[str, float]] = {
    "adalora": {"t_init": 1, "t_final": 1, "interval": 1},
    "flexlora": {"t_init": 1, "t_final": 1, "interval": 1},
    "lora_dash": {"launch": 2, "directions": 2},
    "fish_dip": {"t_final": 1, "interval": 1},
}
STEPS = 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        y = self.second(torch.tanh(self.first(x)))
        return {"loss": (y - labels).square().mean(), "logits": y}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = torch.Generator().manual_seed(index)
        return {"x": torch.randn(10, generator=drawn), "labels": torch.randn(8, generator=drawn)}


def adapted(method: str) -> Any:
    torch.manual_seed(0)
    options = OPTIONS.get(method)
    config = SubspaceConfig(method=method, r=4, target_modules=["first", "second"], schedule=options)
    if config.resolved.needs_calibration:
        shapes = {"first": [9, 10, 12], "second": [9, 12, 8]}
        drawn = {name: torch.randperm(n * m)[:p] for name, (p, n, m) in shapes.items()}
        config = config.with_choice(entries=shapes, positions=drawn)
    return get_peft_model(Net(), config).train()


def scores_of(model: Any) -> Any:
    drawn = torch.Generator().manual_seed(7)
    return lambda: {site.name: torch.rand(site.weight.shape, generator=drawn) for site in sites(model)}


def loss_of(model: Any, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    x, y = torch.randn(4, 10, generator=drawn), torch.randn(4, 8, generator=drawn)
    return model(x=x, labels=y)["loss"]  # type: ignore[no-any-return]


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def trained(model: Any, factor_schedule: Any, optimizer: Any, steps: Any) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        factor_schedule.step(step, optimizer)


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_schedule_made_before_the_model_changes_its_precision_goes_on(method: str) -> None:
    model = adapted(method)
    factor_schedule = schedule(model, STEPS, scores_of(model))
    model.double()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        drawn = torch.Generator().manual_seed(step)
        x, y = (torch.randn(4, width, generator=drawn).double() for width in (10, 8))
        model(x=x, labels=y)["loss"].backward()
        optimizer.step()
        factor_schedule.step(step, optimizer)
    assert factor_schedule.sites[0].weight.dtype == torch.float64
    assert factor_schedule.report()


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_step_that_a_loss_scaler_skips_is_not_remembered(method: str) -> None:
    """With infinite gradients in the second step, all that a schedule remembers stays finite."""
    model = adapted(method)
    factor_schedule, optimizer = schedule(model, STEPS, scores_of(model)), optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step) * (float("inf") if step == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        factor_schedule.step(step, optimizer)
    assert all(torch.isfinite(tensor).all() for tensor in factor_schedule.state_dict().values())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_run_whose_first_steps_are_skipped_prunes_later() -> None:
    model = adapted("adalora")
    factor_schedule = schedule(model, STEPS)
    (loss_of(model) * float("nan")).backward()
    factor_schedule.step(1)
    factor_schedule.step(2)
    assert factor_schedule.state_dict() == {}
    unseen = schedule(adapted("adalora"), STEPS)
    unseen.step(1)
    with pytest.raises(SubspaceError, match="has seen no gradient: call its step after the optimiser's"):
        unseen.step(2)


def test_an_entry_that_enters_a_mask_inherits_nothing() -> None:
    model = adapted("fish_dip")
    optimizer = optimizer_of(model)
    loss_of(model).backward()
    optimizer.step()
    site = sites(model)[0]
    before = site.constants["M"].clone()
    state = optimizer.state[site.parameters["Delta"]]
    kept = state["exp_avg"].clone()
    renew(site, torch.rand(site.weight.shape), optimizer)
    moved = site.constants["M"] != before
    assert moved.any()
    assert not state["exp_avg"][moved].any() and not state["exp_avg_sq"][moved].any()
    assert torch.equal(state["exp_avg"][~moved], kept[~moved])
    assert float(state["step"]) == 1.0


# In the Trainer


def trainer(model: Any, folder: Path, callback: ScheduleCallback | None = None, **options: Any) -> Trainer:
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    made = callback or ScheduleCallback(model, scores_of(model))
    return Trainer(model=model, args=args, train_dataset=Rows(), callbacks=[made])


@pytest.mark.parametrize("method", ["adalora", "flexlora", "lora_dash"])
def test_a_run_goes_on_from_the_checkpoint_that_it_resumes_from(method: str, tmp_path: Path) -> None:
    whole = adapted(method)
    trainer(whole, tmp_path / "whole").train()
    # Another run of the same length lies where the resumed one writes.
    other = adapted(method)
    other.load_state_dict({name: tensor + 0.1 for name, tensor in other.state_dict().items()})
    trainer(other, tmp_path / "resumed", seed=9).train()
    resumed = adapted(method)
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    moved = tmp_path / "moved"
    (tmp_path / "whole" / "checkpoint-4").rename(moved)
    lost = adapted(method)
    with pytest.raises(SubspaceError, match=r"give the folder from which the Trainer resumes as ScheduleCallback"):
        trainer(lost, tmp_path / "resumed").train(resume_from_checkpoint=str(moved))
    found = adapted(method)
    told = ScheduleCallback(found, scores_of(found), checkpoint=moved)
    trainer(found, tmp_path / "resumed", told).train(resume_from_checkpoint=str(moved))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_the_state_is_there_before_the_checkpoint_is_complete(tmp_path: Path) -> None:
    """A run that is killed while the Trainer writes its own state has the schedule's already."""
    model = adapted("adalora")
    run = trainer(model, tmp_path)
    written: list[bool] = []
    save = run._save_rng_state

    def spy(folder: str) -> None:
        written.append((Path(folder) / "schedule.safetensors").is_file())
        save(folder)

    run._save_rng_state = spy  # type: ignore[method-assign]
    run.train()
    assert written == [True, True, True]
    model.save_pretrained(tmp_path / "end")
    assert not (tmp_path / "end" / "schedule.safetensors").exists()


# Forgotten


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_schedule_that_nobody_makes_warns_once(method: str) -> None:
    model = adapted(method)

    def passes() -> None:
        for step in range(PATIENCE + 3):
            loss_of(model, step).backward()

    with pytest.warns(UserWarning, match=f"method '{method}' has a schedule, but nothing stepped it") as seen:
        passes()
    assert len([one for one in seen if "schedule" in str(one.message)]) == 1


def test_a_schedule_that_nobody_steps_warns_when_it_is_saved(tmp_path: Path) -> None:
    model = adapted("adalora")
    factor_schedule = schedule(model, STEPS)
    loss_of(model).backward()
    with pytest.warns(UserWarning, match="nothing stepped it in 1 training passes"):
        model.save_pretrained(tmp_path)
    assert not factor_schedule.stepped


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_schedule_that_is_stepped_warns_nobody(method: str, tmp_path: Path) -> None:
    model = adapted(method)
    factor_schedule, optimizer = schedule(model, 60, scores_of(model)), optimizer_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained(model, factor_schedule, optimizer, range(1, 61))
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["lora", "ssb"])
def test_a_method_without_a_schedule_has_steps_that_do_nothing(method: str) -> None:
    torch.manual_seed(0)
    model: Any = get_peft_model(Net(), SubspaceConfig(method=method, r=2, target_modules=["first"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factor_schedule = schedule(model, 3)
    factor_schedule.step(1)
    assert factor_schedule.report() == {} and factor_schedule.state_dict() == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Over processes


@pytest.mark.parametrize("method", ["svdiff", "sam_parser", "lora", "fish_dip"])
def test_data_parallel_training_broadcasts_no_computed_constants(method: str, tmp_path: Path) -> None:
    model = adapted(method) if method == "fish_dip" else None
    if model is None:
        model = get_peft_model(Net(), SubspaceConfig(method=method, r=2, target_modules=["first", "second"]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for module in (model, model.get_base_model()):
            parallel = nn.parallel.DistributedDataParallel(module)
            sent = {id(buffer) for buffer in parallel.modules_buffers}
            state = set(module.state_dict())
            for name, buffer in module.named_buffers():
                assert (id(buffer) in sent) == (name in state), name
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_factors_train_as_whole_ones() -> None:
    """Penalties, gates and schedules under FSDP2 in two processes."""
    script = Path(__file__).with_name("fsdp_run.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"method"')]
    assert len(found) == 10, done.stderr[-2000:]
    assert all(case["difference"] < 1e-6 for case in found), found
