"""Training, extraction and benchmarks rest on one mechanism: the same laws hold for each."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from subspace_cli import bench as command
from subspace_tuning import SubspaceConfig
from subspace_tuning.adapters import extract as extraction
from subspace_tuning.adapters.extract import Extraction, extract
from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.checkpoint import Checkpoint
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and SIGKILL")


@dataclass
class User:
    """One of the three: how it is called, and the call's one slow place."""

    call: Callable[[Path], object]
    place: tuple[Any, str]


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("models") / "tuned"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    moved = {name: one + 0.1 * torch.randn(one.shape, generator=drawn) for name, one in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def extracted(base: Path, tuned: Path, output: Path, r: int = 3) -> None:
    config = SubspaceConfig(method="lora", r=r, target_modules=["query", "value"])
    extract(Checkpoint(str(base)), Checkpoint(str(tuned)), Extraction(config, energy=0.5), output)


@pytest.fixture(params=["training", "extraction", "benchmark"])
def user(
    request: pytest.FixtureRequest,
    settings: dict[str, Any],
    write: Callable[[Mapping[str, Any]], Path],
    tiny_model: Path,
    tuned: Path,
) -> User:
    config = write(settings)
    return {
        "training": User(lambda path: train.run(configs.load(config, [f"output={path}"])), (train, "_train")),
        "extraction": User(lambda path: extracted(tiny_model, tuned, path), (extraction, "_part")),
        "benchmark": User(lambda path: command.bench(**BENCH, output=path), (command, "_curve")),
    }[request.param]


BENCH: dict[str, Any] = {
    "shape": "a",
    "precision": "float32",
    "method": ["lora"],
    "rank": 8,
    "budget": None,
    "rounds": 2,
    "threads": 1,
    "curve": "rank",
    "memory": False,
    "compiled": False,
    "overwrite": False,
}


def test_a_second_process_is_refused_while_the_first_is_at_work(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, ready = tmp_path / "output", tmp_path / "ready"

    def wait(*args: Any, **options: Any) -> Any:
        ready.touch()
        time.sleep(600)

    with monkeypatch.context() as patch:
        patch.setattr(*user.place, wait)
        first = multiprocessing.get_context("fork").Process(target=user.call, args=(output,))
        first.start()  # with the place patched
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert first.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(SubspaceError, match="another process is at work in"):
            user.call(output)
    finally:
        first.kill()
        first.join()

    def reached(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(*user.place, reached)
    with pytest.raises(ZeroDivisionError):  # free again
        user.call(output)


def contents(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in report]
    return {"rows": rows, "tensors": (folder / "adapter_model.safetensors").read_bytes()}


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_extraction_ends_bit_for_bit_where_it_would_have_ended(
    seed: int, tiny_model: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process is killed at a moment drawn at random within its time; spectra and matrices are both parts."""
    drawn = torch.Generator().manual_seed(seed)
    extracted(tiny_model, tuned, tmp_path / "whole")
    real, parted, kills = extraction.pair, tmp_path / "parted", 0

    def slowly(*args: Any) -> Any:
        time.sleep(0.02)
        return real(*args)

    monkeypatch.setattr(extraction, "pair", slowly)
    while not parted.exists():
        assert kills < 100
        process = multiprocessing.get_context("fork").Process(target=extracted, args=(tiny_model, tuned, parted))
        process.start()
        process.join(0.1 + 0.2 * (1 + kills / 5) * float(torch.rand((), generator=drawn)))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills > 0
    assert contents(parted) == contents(tmp_path / "whole")
