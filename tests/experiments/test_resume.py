"""Interrupted runs end where they would have ended, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.folder import RunFolder
from subspace_tuning.training.sections import RunConfig
from subspace_tuning.training.trainer import SeededTrainer

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]


def _same_weights(one: Path, other: Path) -> bool:
    first, second = ({path.name: load_file(path) for path in folder.glob("*.safetensors")} for folder in (one, other))
    return first.keys() == second.keys() != set() and all(
        tensors.keys() == second[name].keys() and all(torch.equal(tensors[key], second[name][key]) for key in tensors)
        for name, tensors in first.items()
    )


def _interrupt_saving(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run that is interrupted after its last step."""

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save", fail)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, progress=False)


def _interrupt(config: RunConfig, step: int, monkeypatch: pytest.MonkeyPatch, dawdle: float = 0.0) -> None:
    """Starts a run and stops it short of a step, as ctrl-C would stop it; `dawdle` seconds pass before every step."""
    train_step = SeededTrainer.training_step

    def stop(self: SeededTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(dawdle)
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return train_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SeededTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, progress=False)


SCHEDULES: dict[str, dict[str, float]] = {
    "adalora": {"t_init": 1, "t_final": 3, "interval": 1},
    "flexlora": {"t_init": 1, "t_final": 2, "interval": 1},
    "lora_dash": {"launch": 4, "directions": 3},
    "fish_dip": {"interval": 2, "t_final": 1},
}
METHODS = ["ssb", "lora", "bitfit", "full", "diff_pruning", "prefix_tuning", "mam", *SCHEDULES]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs that nothing interrupts, one per method."""
    return tmp_path_factory.mktemp("wholes")


# Three steps per epoch; checkpoints after steps 3, 4, 6, 8 and 9.
STOPS = [(2, None), (3, 3), (5, 4), (8, 8)]
# Where the quick tests stop.
QUICK = {"adalora": STOPS, **dict.fromkeys(("ssb", "full", "mam", "fish_dip"), STOPS[2:3])}


@pytest.mark.parametrize(
    ("method", "step", "resumed"),
    [
        pytest.param(method, *stop, marks=[] if stop in QUICK.get(method, ()) else [pytest.mark.slow])
        for method in METHODS
        for stop in STOPS
    ],
)
def test_a_run_goes_on_from_within_or_between_epochs(
    method: str,
    step: int,
    resumed: int | None,
    settings: Settings,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    wholes: Path,
) -> None:
    settings["adapter"] = {"method": method}
    if method in SCHEDULES:
        settings["adapter"]["schedule"] = SCHEDULES[method]
    settings["training"] |= {"epochs": 3, "save_steps": 4}
    config = configs.load(write(settings))
    # The first of a method's cases trains it; the others find it done.
    whole = train.run(configs.load(write({**settings, "output": str(wholes / method)})), progress=False)
    _interrupt(config, step, monkeypatch)
    assert RunFolder(config.output).record() is None
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] == resumed
    assert parted.record["history"] == whole.record["history"]
    assert parted.record["losses"] == whole.record["losses"]
    assert parted.record["schedule"] == whole.record["schedule"]
    assert _same_weights(parted.folder, whole.folder)
    assert not (Path(config.output) / "checkpoints").exists()


STOPPING = {"epochs": 40, "eval_steps": 2, "keep": "best", "patience": 2, "learning_rate": 0.03}


@pytest.mark.parametrize("stop", [1, 3, None], ids=["early", "between", "before saving"])
def test_a_run_that_stops_by_itself_does_so_after_an_interruption(
    stop: int | None, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch, wholes: Path
) -> None:
    settings["training"] |= STOPPING
    config = configs.load(write(settings))
    whole = train.run(configs.load(write({**settings, "output": str(wholes / "stopping")})), progress=False)
    scores = [entry[whole.record["metric"]] for entry in whole.record["history"]]
    best = scores.index(max(scores))
    assert len(scores) == best + 3 and whole.record["steps"] < 120  # two evaluations that are no better end it
    assert {entry["step"] for entry in whole.record["history"]} >= {2, 3, 4}
    if stop is None:
        _interrupt_saving(config, monkeypatch)
    else:
        _interrupt(config, stop, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["history"] == whole.record["history"]
    assert (parted.record["steps"], parted.record["score"]) == (whole.record["steps"], max(scores))
    assert _same_weights(parted.folder, whole.folder)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("steps", [4, 6])
def test_a_run_interrupted_after_its_last_step_only_saves(
    keep: str, steps: int, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["training"] |= {"max_steps": steps, "keep": keep, "learning_rate": 0.03}
    config = configs.load(write(settings))
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    _interrupt_saving(config, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["steps"] == whole.record["steps"] == steps
    assert parted.record["score"] == whole.record["score"]
    assert parted.record["losses"] == whole.record["losses"]
    assert _same_weights(parted.folder, whole.folder)


def test_the_score_before_the_first_step_is_told_once(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["training"] |= {"eval_on_start": True, "save_steps": 2}
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    config = configs.load(write(settings))
    _interrupt(config, 3, monkeypatch)
    parted = train.run(config, progress=False)
    before = whole.record["before"]
    assert (before["step"], before["epoch"]) == (0, 0.0)
    assert parted.record["resumed_from_step"] == 3 and parted.record["before"] == before
    assert [entry["step"] for entry in parted.record["history"]] == [3, 6]
    assert parted.record["history"] == whole.record["history"] and _same_weights(parted.folder, whole.folder)
    few = ["training.learning_rate=1e-30", "training.max_steps=1", f"output={settings['output']}-still"]
    still = train.run(configs.load(write(settings), few), progress=False).record["final"]
    assert {**still, "step": 0, "epoch": 0.0} == pytest.approx(before, rel=1e-5)


def test_the_seconds_of_all_parts_are_counted(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(write(settings))
    _interrupt(config, 4, monkeypatch, dawdle=0.3)
    assert train.run(config, progress=False).record["seconds"] > 0.9


def test_changed_data_do_not_go_on(
    settings: Settings, write: Write, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in data.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings["task"]["data"] = str(copy)
    config = configs.load(write(settings))
    _interrupt(config, 4, monkeypatch)
    lines = (copy / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(SubspaceError, match=r"the run cannot be resumed: data\.train"):
        train.run(config, progress=False)
    assert not train.run(config, overwrite=True, progress=False).repeated


def test_a_half_written_checkpoint_is_passed_over(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(write(settings))
    _interrupt(config, 5, monkeypatch)
    half = Path(config.output) / "checkpoints" / "checkpoint-5"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 5, ', encoding="utf-8")
    assert train.run(config, progress=False).record["resumed_from_step"] == 3


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
@pytest.mark.parametrize(
    ("method", "kills"), [("ssb", (20,)), pytest.param("full", (2, 30, 70), marks=pytest.mark.slow)]
)
def test_a_killed_process_loses_nothing(method: str, kills: tuple[int, ...], settings: Settings, write: Write) -> None:
    settings["adapter"] = {"method": method}
    settings["training"] |= {"epochs": kills[-1] // 3 + 10, "save_steps": 2}  # three steps each
    config = write(settings)
    output = Path(settings["output"])
    command = [sys.executable, "-c", "from subspace_cli import main; main()", "train", str(config), "--quiet"]
    for kill_after in kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy())
        _wait_for_step(output, kill_after, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "run.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    parted = RunFolder(output).record()
    assert parted is not None and parted["resumed_from_step"] >= kills[-1]
    whole = train.run(configs.load(config, [f"output={output}-whole"]), progress=False)
    assert parted["history"] == whole.record["history"]
    assert _same_weights(output / parted["result"], whole.folder)


def _wait_for_step(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has begun to write a checkpoint of a step beyond `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = [int(path.name.rpartition("-")[2]) for path in (output / "checkpoints").glob("checkpoint-*")]
        if found and max(found) > step:
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    pytest.fail("the run made no checkpoint in two minutes")
