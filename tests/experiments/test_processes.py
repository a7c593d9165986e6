"""A run in two processes ends as in one, sharded or not, and its processes answer as one."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file

from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.callbacks import EpochOrder
from subspace_tuning.training.folder import RunFolder
from subspace_tuning.training.sampler import EpochSampler

PROGRAM = Path(__file__).with_name("in_processes.py")
EVERY_STEP = {"t_init": 1, "t_final": 1, "interval": 1}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "pattern": "orthogonal", "pattern_weight": 0.1},
    "ssb": {},
    "dora": {"r": 4, "pattern": "orthogonal", "pattern_weight": 0.1},
    "svdiff": {},
    "adalora": {"r": 4, "pattern": "orthogonal", "pattern_weight": 0.1, "schedule": EVERY_STEP},
}
CHOOSING = {"fish_dip": {"schedule": {"interval": 2, "t_final": 1}}}  # from gradients of W, which FSDP shards
PROCESSES = 2
PATIENCE = 300  # seconds
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")

pytestmark = [
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def causal() -> Any:
    """The function of the program that trains a language model."""
    return runpy.run_path(str(PROGRAM))["causal"]


@dataclass(frozen=True)
class Place:
    """Where runs are, and a model without dropout, which every number of processes would draw otherwise."""

    folder: Path
    model: Path
    data: Path

    def config(self, output: str, method: str, processes: int, **training: Any) -> Path:
        """Return the file of a run whose optimiser steps see the same rows in any number of processes."""
        settings = {
            "model": str(self.model),
            "output": str(self.folder / output),
            "task": {"name": "cola", "data": str(self.data), "max_length": 16},
            "adapter": {"method": method, **(CASES | CHOOSING)[method]},
            "training": {
                "epochs": 2,
                "batch_size": 4,
                "eval_batch_size": 4,
                "gradient_accumulation": 4 // processes,
                "eval_steps": 1,
                "learning_rate": 0.01,
                "threads": 1,
                "device": "cpu",
                "precision": "float32",
                **training,
            },
        }
        path = self.folder / f"{output}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    def alone(self, method: str) -> dict[str, Any]:
        """Return the record of a run in this process, which the first call makes."""
        return train.run(configs.load(self.config(f"alone-{method}", method, 1)), progress=False).record

    def record(self, output: str) -> dict[str, Any]:
        """Return the record of a finished run."""
        record = RunFolder(self.folder / output).record()
        assert record is not None
        return record

    def logits(self, output: str) -> torch.Tensor:
        """Return the outputs of a saved adapter, loaded in this process."""
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(self.folder / output / "adapter").eval()
        with torch.no_grad():
            found: torch.Tensor = model(torch.arange(5, 29).view(4, 6)).logits
        return found


@pytest.fixture(scope="module")
def place(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("processes")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    return Place(folder, model, data)


def call(folder: Path, items: list[str], kill_at: int = 0) -> list[int | None]:
    """Let two processes do the items, and return their exit codes; see the program."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["subspace_cli.app", "subspace_tuning.training.run"])
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = []
    for rank in range(PROCESSES):
        arguments = {"ARGUMENTS": (rank, port, str(folder), kill_at, items)}
        made.append(context.Process(target=runpy.run_path, args=(str(PROGRAM), arguments, "__main__")))
        made[-1].start()
    for process in made:
        process.join(PATIENCE)
        process.kill()
        process.join()
    return [process.exitcode for process in made]


def printed(folder: Path, name: str) -> list[str]:
    """Return the lines that each process has written."""
    return [(folder / f"{rank}.{name}").read_text() for rank in range(PROCESSES)]


def agree(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    """Assert that two runs had the same evaluations, after every step."""
    assert [entry["step"] for entry in one] == [entry["step"] for entry in other] == list(range(1, 7))
    losses = [[entry["loss"] for entry in history] for history in (one, other)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert len(set(losses[0])) > 1  # it trains


def check(place: Place, kind: str, method: str) -> None:
    """Assert that a run in two processes has ended as the one in this process."""
    alone, output = place.alone(method), f"{kind}-{method}"
    record = place.record(output)
    assert record["processes"] == PROCESSES and record["steps"] == alone["steps"]
    agree(alone["history"], record["history"])
    torch.testing.assert_close(place.logits(output), place.logits(f"alone-{method}"), atol=1e-3, rtol=1e-3)
    if kind in ("ddp", "zero2"):
        saved = load_file(place.folder / output / "adapter" / "adapter_model.safetensors")
        for rank in range(PROCESSES):
            held = load_file(place.folder / f"{output}-{rank}.safetensors")
            assert saved.keys() == held.keys()
            assert all(torch.equal(saved[name], held[name]) for name in saved), rank


def test_two_processes_train_and_answer_as_one(place: Place, tmp_path: Path) -> None:
    items = [f"{kind} {place.config(f'{kind}-lora', 'lora', PROCESSES)}" for kind in ("ddp", "fsdp")]
    # At its end, a run that is refused: another method in the same folder.
    other = configs.load(place.config("ddp-lora", "ssb", PROCESSES)).output
    refused = shutil.copy(f"{other}.yaml", tmp_path / "other.yaml")
    place.config("ddp-lora", "lora", PROCESSES)
    assert call(tmp_path / "log", [*items, f"cli {refused}"]) == [2, 2], printed(tmp_path / "log", "err")
    check(place, "ddp", "lora")
    check(place, "fsdp", "lora")
    errors, output = printed(tmp_path / "log", "err"), printed(tmp_path / "log", "out")
    told = [line for line in errors[0].splitlines() if line.startswith("subspace: ")]
    assert len(told) == 1 and "holds a run of another config" in told[0]
    assert "subspace" not in errors[1] and output[1] == ""


KINDS = [
    "ddp",
    "fsdp",
    *(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3")),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_in_two_processes_as_in_one(kind: str, place: Place, tmp_path: Path, causal: Any) -> None:
    names = [*CASES, *(CHOOSING if kind == "ddp" else ())]
    items = [f"{kind} {place.config(f'{kind}-{name}', name, PROCESSES)}" for name in names]
    # tests/tuner/test_zero.py has the stock Trainer under ZeRO.
    adapters = {name: {"method": name, **options} for name, options in CASES.items() if "zero" not in kind}
    for name, adapter in adapters.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(adapter))
        items.append(f"{kind} {tmp_path / name}.json")
    assert call(tmp_path / "log", items) == [0, 0], printed(tmp_path / "log", "err")
    for name in CASES:
        check(place, kind, name)
    for name, adapter in adapters.items():
        alone = causal(adapter, tmp_path, 1)
        for rank in range(PROCESSES):
            losses = json.loads((tmp_path / f"{name}.{rank}.losses").read_text())
            assert losses == pytest.approx(alone, abs=1e-4), name
    if kind == "ddp":  # each process looks for the hardest of its own rows, so they are not those of one process
        saved = load_file(place.folder / "ddp-fish_dip" / "adapter" / "adapter_model.safetensors")
        for rank in range(PROCESSES):
            held = load_file(place.folder / f"ddp-fish_dip-{rank}.safetensors")
            assert saved and all(torch.equal(saved[name], held[name]) for name in saved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, 4])  # within the first epoch, and within the second
def test_killed_processes_go_on(kind: str, step: int, place: Place, tmp_path: Path) -> None:
    whole, parted = (
        place.config(f"{name}-{kind}-{step}", "adalora", PROCESSES, save_steps=1) for name in ("whole", "parted")
    )
    assert call(tmp_path / "killed", [f"{kind} {parted}"], kill_at=step) == [-9, -9]
    assert call(tmp_path / "log", [f"{kind} {parted}", f"{kind} {whole}"]) == [0, 0], printed(tmp_path / "log", "err")
    records = [place.record(f"{name}-{kind}-{step}") for name in ("parted", "whole")]
    assert [record["resumed_from_step"] for record in records] == [step, None]
    assert records[0]["history"] == records[1]["history"]
    one, other = (
        load_file(place.folder / f"{name}-{kind}-{step}" / "adapter" / "adapter_model.safetensors")
        for name in ("parted", "whole")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_another_number_of_processes_does_not_go_on(place: Place, tmp_path: Path) -> None:
    path = place.config("fewer", "ssb", PROCESSES)
    assert call(tmp_path / "log", [f"ddp {path}"], kill_at=4) == [-9, -9]
    with pytest.raises(SubspaceError, match=r"cannot be resumed: processes is 2 there and 1 now; --overwrite"):
        train.run(configs.load(path), progress=False)


ACCELERATE = ["accelerate.commands.launch", "--num_processes=2", "--mixed_precision=no"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"],
    "accelerate": [*ACCELERATE, "--multi_gpu", "--module"],
    "deepspeed": [*ACCELERATE, "--use_deepspeed", "--zero_stage=2", "--module"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=needs_deepspeed if name == "deepspeed" else ()) for name in LAUNCHERS]
)
def test_launchers(launcher: str, place: Place) -> None:
    path = place.config(f"launched-{launcher}", "lora", PROCESSES)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "subspace_cli", "train", str(path), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved in") == 1
    record = place.record(path.stem)
    assert record["processes"] == PROCESSES
    agree(place.alone("lora")["history"], record["history"])


ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
REFUSED = {
    "DeepSpeed alone": (ZERO, "divides among several processes, and there is one|DeepSpeed, which is not installed"),
    "Megatron-LM": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "does not run under Megatron-LM"),
    "FSDP1": ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, r"FSDP1: add --fsdp_version 2"),
    "the CPU": ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "needs several processes on accelerators"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_launcher_asks_for_in_vain_is_refused(name: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, message = REFUSED[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    config = configs.load(place.config("refused", "ssb", 1))
    with pytest.raises(SubspaceError, match=message) as caught:
        train.run(config, progress=False)
    assert "\n" not in str(caught.value) and not Path(config.output).exists()


def test_processes_that_resume_have_the_order_of_their_epoch() -> None:
    """Its order is set in the sampler itself: accelerate's shards of it pass no epoch on when they skip batches."""
    orders = []
    for epoch in (0.0, 0.5, 1.0, 1.5):
        order = EpochSampler([1] * 20, None, seed=0)
        state: Any = SimpleNamespace(epoch=epoch)
        EpochOrder(order).on_epoch_begin(None, state, None)  # type: ignore[arg-type]
        orders.append(list(order))
    assert orders[0] == orders[1] != orders[2] == orders[3]
