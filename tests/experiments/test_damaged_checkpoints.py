"""A run goes on from a whole checkpoint of its own, or says in one line what is wrong with it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.folder import RunFolder
from subspace_tuning.training.trainer import SeededTrainer

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def interrupted(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run that was stopped after its third step of six."""
    settings = {
        "model": str(tiny_model),
        "output": str(tmp_path_factory.mktemp("interrupted") / "run"),
        "task": {"name": "cola", "data": str(data), "max_length": 16},
        "adapter": {"method": "lora", "r": 4},
        "training": {"epochs": 2, "batch_size": 16, "threads": 1, "device": "cpu", "precision": "float32"},
    }
    step = SeededTrainer.training_step

    def stop(self: SeededTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeededTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(_load(settings), progress=False)
    return settings


def _load(settings: Mapping[str, Any], folder: Path | None = None) -> configs.RunConfig:
    path = Path(settings["output"]).parent / "config.yaml"
    path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return configs.load(path, [] if folder is None else [f"output={folder}"])


def _tensors(change: Callable[[dict[str, torch.Tensor], str], None]) -> Damage:
    def damage(checkpoint: Path) -> None:
        file = checkpoint / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors, next(name for name in sorted(tensors) if "subspace_params" in name))
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def _lose(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def _grow(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def _remove(name: str) -> Damage:
    return lambda checkpoint: (checkpoint / name).unlink()


def _garbage(name: str) -> Damage:
    return lambda checkpoint: (checkpoint / name).write_bytes(b"garbage")  # type: ignore[func-returns-value]


class _Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def _hostile(name: str) -> Damage:
    return lambda checkpoint: (checkpoint / name).write_bytes(pickle.dumps(_Hostile()))  # type: ignore[func-returns-value]


def _other_shapes(checkpoint: Path) -> None:
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    first = next(iter(state["state"].values()))
    first["exp_avg"] = torch.zeros(3, 3)
    torch.save(state, checkpoint / "optimizer.pt")


def _state(**fields: Any) -> Damage:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "trainer_state.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return damage


FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
DAMAGES: dict[str, Damage] = {
    "no weights": _remove("adapter_model.safetensors"),
    "no factor": _tensors(_lose),
    "another shape": _tensors(_grow),
    "torn weights": _garbage("adapter_model.safetensors"),
    **{f"no {name}": _remove(name) for name in FILES},
    **{f"garbage in {name}": _garbage(name) for name in FILES},
    **{f"hostile {name}": _hostile(name) for name in FILES},
    "other shapes in the optimiser": _other_shapes,
    "step of a text": _state(global_step="three"),
    "step of another": _state(global_step=4),
    "end of another": _state(max_steps=7),
    "history of a text": _state(log_history="long"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    case: str, interrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(interrupted["output"], tmp_path / "run"))
    (checkpoint,) = (folder / "checkpoints").glob("checkpoint-*")
    DAMAGES[case](checkpoint)
    with pytest.raises(SubspaceError) as caught:
        train.run(_load(interrupted, folder), progress=False)
    assert "checkpoint-3" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert not (folder / "run.json").exists()


def test_names_that_are_no_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (folder.checkpoints / "checkpoint-abc").mkdir(parents=True)
    assert folder.last_checkpoint() is None
    (folder.checkpoints / "checkpoint-7").write_text("mine", encoding="utf-8")
    with pytest.raises(SubspaceError, match=r"checkpoint-7 is a file, where a checkpoint is a folder: remove it"):
        folder.last_checkpoint()


def test_a_run_that_another_process_finished_meanwhile_is_left(
    interrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(interrupted["output"], tmp_path / "run"))
    prepare = train._prepare

    def slow(config: configs.RunConfig) -> Any:
        parts = prepare(config)
        with monkeypatch.context() as patch:
            patch.setattr(train, "_prepare", prepare)
            assert not train.run(config, progress=False).repeated
        return parts

    with monkeypatch.context() as patch:
        patch.setattr(train, "_prepare", slow)
        assert train.run(_load(interrupted, folder), progress=False).repeated
