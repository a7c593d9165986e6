"""Whatever a person gets wrong: one line on stderr, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from subspace_cli import main
from subspace_tuning.training.config import load
from subspace_tuning.training.folder import RunFolder

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]
Change = Callable[[Settings, Path], None]
"""Spoils the settings, or something on disk under the folder that it gets."""


def _set(key: str, value: Any) -> Change:
    def change(settings: Settings, folder: Path) -> None:
        *sections, last = key.split(".")
        for section in sections:
            settings = settings[section]
        settings[last] = value

    return change


def _lose_split(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["task"]["data"]), folder / "copied")
    (copied / "validation.jsonl").unlink()
    settings["task"]["data"] = str(copied)


def _lose_column(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["task"]["data"]), folder / "copied")
    (copied / "train.jsonl").write_text('{"text": "ba de", "label": 1}\n', encoding="utf-8")
    settings["task"]["data"] = str(copied)


def _strange_label(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["task"]["data"]), folder / "copied")
    (copied / "train.jsonl").write_text('{"sentence": "ba de", "label": 2}\n', encoding="utf-8")
    settings["task"]["data"] = str(copied)


def _lose_config(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    (copied / "config.json").unlink()
    settings["model"] = str(copied)


def _lose_weights(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    (copied / "model.safetensors").unlink()
    settings["model"] = str(copied)


def _tear_weights(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    with (copied / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    settings["model"] = str(copied)


def _spoil_weights(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    weights = load_file(copied / "model.safetensors")
    name = "encoder.layer.1.attention.self.key.weight"
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    settings["model"] = str(copied)


def _lose_a_layer(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    weights = load_file(copied / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1.attention.self" not in name}
    save_file(kept, copied / "model.safetensors", metadata={"format": "pt"})
    settings["model"] = str(copied)


def _pack_weights(settings: Settings, folder: Path) -> None:
    """As a format does of which transformers has never heard, and says so in a log alone."""
    copied = _copy(Path(settings["model"]), folder / "copied")
    weights = load_file(copied / "model.safetensors")
    packed = {name.replace("dense.weight", "dense.codes"): tensor for name, tensor in weights.items()}
    save_file(packed, copied / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "codes", "bits": 4}
    (copied / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings["model"] = str(copied)


def _widen(settings: Settings, folder: Path) -> None:
    copied = _copy(Path(settings["model"]), folder / "copied")
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}), encoding="utf-8")
    settings["model"] = str(copied)


def _file_in_the_way(settings: Settings, folder: Path) -> None:
    (folder / "file").write_text("", encoding="utf-8")
    settings["output"] = str(folder / "file" / "run")


def _full_folder(settings: Settings, folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("irreplaceable", encoding="utf-8")
    settings["output"] = str(folder / "mine")


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


BAD: Mapping[str, tuple[Change, str]] = {
    "unknown key": (_set("training.epoch", 3), "unknown key 'training.epoch'; did you mean epochs"),
    "wrong type": (_set("training.seed", "first"), "training.seed: Value 'first'"),
    "unknown task": (_set("task.name", "colla"), "unknown task 'colla': did you mean cola"),
    "unknown method": (_set("adapter.method", "loar"), "unknown method 'loar'; did you mean"),
    "wrong formula": (_set("adapter", {"formula": "D1 @ W @"}), "'@' has no right operand; write 'D1 @ W'"),
    "rank too large": (_set("adapter", {"method": "lora", "r": 1025}), "rank 1025 is far too large for its 32 x 32"),
    "rank not positive": (_set("adapter", {"method": "lora", "r": 0}), "r = 0 is not a positive whole number"),
    "alpha not positive": (_set("adapter", {"method": "lora", "alpha": -1}), "alpha = -1.0 is not a positive number"),
    "targets nothing": (
        _set("adapter.target_modules", ["keys"]),
        "Target modules ['keys'] not found in the base model",
    ),
    "head of nothing": (_set("adapter.head", ["score"]), "matches no module with weights"),
    "data folder missing": (_set("task.data", "./nowhere"), "data folder './nowhere' does not exist"),
    "split missing": (_lose_split, "no validation file"),
    "column missing": (_lose_column, "train.jsonl lacks column sentence of task cola: its columns are text, label"),
    "label out of range": (_strange_label, "label 2 is not 0 to 1"),
    "model folder missing": (_set("model", "./nowhere"), "model folder './nowhere' does not exist"),
    "hub unreachable": (_set("model", "nobody/nothing"), "give a local folder as model"),
    "no model config": (_lose_config, "has no config.json"),
    "no weights": (_lose_weights, "cannot load model"),
    "torn weights": (_tear_weights, "cannot load model"),
    "weights lost": (
        _lose_a_layer,
        "no bert.encoder.layer.1.attention.self.key.bias of the model's shape (and 5 more)",
    ),
    "weights packed": (_pack_weights, "packed in a format that transformers does not know"),
    "weights of another shape": (_widen, "has no bert.encoder.layer.0.intermediate.dense.bias of the model's shape"),
    "NaN weights": (_spoil_weights, "holds NaN or infinity in bert.encoder.layer.1.attention.self.key.weight"),
    "text too long": (_set("task.max_length", 41), "task.max_length is 41, but model"),
    "output behind a file": (_file_in_the_way, "cannot be made"),
    "output not ours": (_full_folder, "is not empty and has no run"),
}


def _everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(
    case: str, settings: Settings, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, told = BAD[case]
    change(settings, tmp_path)
    config = write(settings)
    before = _everything(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(config)])
    output, errors = capfd.readouterr()
    assert caught.value.code == 2
    assert told in errors
    assert errors.startswith("subspace: ")
    assert errors.count("\n") == 1
    assert output == ""
    assert _everything(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs a system with Unix permissions")
@pytest.mark.parametrize("place", ["parent", "itself"])
def test_an_output_that_cannot_be_written_is_told(
    place: str, settings: Settings, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("needs a user that permissions bind (not root)")
    settings["output"] = str(locked / "run" if place == "parent" else locked)
    with pytest.raises(SystemExit):
        main(["train", str(write(settings))])
    assert "is not writable" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file system in which no one can make a folder")
def test_an_output_that_the_system_refuses_is_told(
    settings: Settings, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    settings["output"] = "/proc/subspace/run"
    with pytest.raises(SystemExit) as caught:
        main(["train", str(write(settings))])
    errors = capfd.readouterr().err
    assert caught.value.code == 2
    assert errors.startswith("subspace: output folder /proc/subspace/run") and errors.count("\n") == 1


def test_a_run_that_would_change_another_leaves_it(
    settings: Settings, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write(settings)
    folder = RunFolder(settings["output"])
    with folder.open({"config": load(config).resolved()}, overwrite=False):
        pass
    before = _everything(folder.path)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(config), "training.epochs=9"])
    assert caught.value.code == 2
    assert "training.epochs is 2 there and 9 now" in capfd.readouterr().err
    assert _everything(folder.path) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train"], "Missing argument 'config'"),
        (["train", "{config}", "--overwirte"], "No such option: --overwirte"),
        (["trian", "{config}"], "No such command 'trian'"),
        (["train", "{rows}"], "rows.csv' holds rows, not a config: give task.data="),
        (["train", "nowhere.yaml"], "config file 'nowhere.yaml' does not exist"),
        (["train", "{config}", "training.seed"], "override 'training.seed' is not of the form key=value"),
        (["train", "{config}", "training.sed=1"], "unknown key 'training.sed'; did you mean"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(
    words: list[str], told: str, settings: Settings, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, rows = write(settings), tmp_path / "rows.csv"
    rows.write_text("text,label\nba,x\n", encoding="utf-8")
    before = _everything(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([word.format(config=config, rows=rows) for word in words])
    error = capfd.readouterr().err
    assert caught.value.code == 2
    assert told in error and len(error.splitlines()) == 1
    assert _everything(tmp_path) == before


def test_the_process_ends_with_code_2_and_one_line(settings: Settings, write: Write) -> None:
    command = [sys.executable, "-c", "from subspace_cli import main; main()"]
    command += ["train", str(write(settings)), "training.sed=1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "unknown key 'training.sed'" in done.stderr


def test_a_good_run_reports_what_it_did(settings: Settings, write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    config = write(settings)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(config), "training.epochs=1"])
    output = capfd.readouterr().out
    assert caught.value.code == 0
    assert "epoch 1 of 1" in output
    assert "constant prediction" in output
    record = json.loads((Path(settings["output"]) / "run.json").read_text(encoding="utf-8"))
    assert f"matthews_correlation  {record['score']:.4f}" in output
    with pytest.raises(SystemExit) as caught:
        main(["train", str(config), "training.epochs=1"])
    assert caught.value.code == 0
    assert "Finished before" in capfd.readouterr().out


def test_a_record_holds_a_config_that_runs_again(settings: Settings, write: Write, tmp_path: Path) -> None:
    config = load(write(settings))
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config.resolved()), encoding="utf-8")
    assert load(tmp_path / "again.yaml") == config
