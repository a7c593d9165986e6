"""Every command, whatever the disk, the files and the words are like: one line, exit code 2, nothing changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from subspace_cli import main
from subspace_cli import methods as methods_command
from subspace_tuning import SubspaceConfig
from subspace_tuning import files as writing
from subspace_tuning.algebra import NotLinearError

Words = list[object]
TARGETS = ["query", "value"]
ADAPTERS = ("lora", "pissa", "spectral", "sam_parser")


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("tuned")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of several methods, and one of peft's LoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    configs: dict[str, Any] = {
        name: SubspaceConfig(method=name, r=4, target_modules=TARGETS, init_weights=False) for name in ADAPTERS
    }
    configs["peft"] = LoraConfig(r=4, target_modules=TARGETS)
    for name, config in configs.items():
        base = BertForSequenceClassification.from_pretrained(tiny_model)
        get_peft_model(base, config).save_pretrained(folder / name)
    return {name: folder / name for name in configs}


@pytest.fixture
def calls(
    tiny_model: Path,
    tuned: Path,
    adapters: dict[str, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Callable[[Path], Words]]:
    """Every command that writes, as a function of where to."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    monkeypatch.chdir(inputs)
    run = {
        "model": str(tiny_model),
        "task": {"name": "cola", "data": str(data), "max_length": 16},
        "adapter": {"method": "ssb"},
        "training": {"max_steps": 1, "threads": 1, "device": "cpu", "precision": "float32"},
    }
    (inputs / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    lora, files = adapters["lora"], {"inspect-table": ".csv"}
    words: dict[str, Callable[[Path], Words]] = {
        "bench": lambda out: ["bench", "-m", "ssb", "--rounds", 2, "-o", out],
        "recommend": lambda out: ["recommend", tiny_model, "--tuned", tuned, "-m", "ssb", "-o", out],
        "inspect-table": lambda out: ["inspect", tiny_model, lora, "-o", f"{out}{files['inspect-table']}"],
        "inspect-figures": lambda out: ["inspect", tiny_model, lora, "--figures", out],
        "convert": lambda out: ["convert", lora, "--to", "peft-lora", "-o", out],
        "combine": lambda out: ["combine", lora, lora, "-o", out],
        "extract": lambda out: ["extract", tiny_model, tuned, "-r", 2, "-o", out],
        "demo": lambda out: ["demo", "-o", out],
        "train": lambda out: ["train", inputs / "run.yaml", f"output={out}", "--quiet"],
    }
    return words


FILES = ("bench", "recommend", "inspect-table")
FOLDERS = ("inspect-figures", "convert", "combine", "extract", "demo", "train")


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Call, check that the input is refused in one line and nothing has changed, and return the line."""
    before = everything(tmp_path)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    errors = capfd.readouterr().err
    assert caught.value.code == 2, errors
    assert errors.startswith("subspace: ") and errors.count("\n") == 1
    assert len(errors) < 1000
    assert everything(tmp_path) == before
    return errors


def parent_is_a_file(tmp_path: Path, command: str) -> Path:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    return tmp_path / "file" / "out"


def of_the_other_kind(tmp_path: Path, command: str) -> Path:
    if command in FILES:
        (tmp_path / ("out.csv" if command == "inspect-table" else "out") / "mine").mkdir(parents=True)
    else:
        (tmp_path / "out").write_text("mine", encoding="utf-8")
    return tmp_path / "out"


def name_too_long(tmp_path: Path, command: str) -> Path:
    return tmp_path / ("x" * 300)


def refused_by_the_system(tmp_path: Path, command: str) -> Path:
    return Path("/proc/subspace") / "out"


PLACES = [parent_is_a_file, of_the_other_kind, name_too_long, refused_by_the_system]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", [*FILES, *FOLDERS])
def test_an_output_that_cannot_be(
    command: str,
    place: Callable[[Path, str], Path],
    calls: dict[str, Callable[[Path], Words]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if place is refused_by_the_system and not Path("/proc/version").exists():
        pytest.skip("needs a file system in which no one can make a folder")
    refused(calls[command](place(tmp_path, command)), tmp_path, capfd)


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_of_somebody_else_stays_as_it_is(
    command: str, calls: dict[str, Callable[[Path], Words]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if command == "inspect-figures":
        pytest.skip("figures may stand beside other files")
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "train.jsonl").write_text("irreplaceable", encoding="utf-8")
    errors = refused([*calls[command](tmp_path / "out"), "--overwrite"], tmp_path, capfd)
    assert "is not empty and has no" in errors or "holds other sentences" in errors


@pytest.mark.parametrize("command", ["recommend", "inspect-table", "convert", "combine", "extract"])
def test_a_full_disk_loses_nothing(
    command: str,
    calls: dict[str, Callable[[Path], Words]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in calls[command](out)])
    assert caught.value.code == 0
    overwrite: Words = ["--overwrite"] if command in FOLDERS else []
    monkeypatch.setattr(os, "fsync", full)
    before = everything(tmp_path)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in [*calls[command](out), *overwrite]])
    errors = capfd.readouterr().err
    assert caught.value.code == 2
    assert errors == "subspace: No space left on device; make room, and call again\n"
    after = {path: held for path, held in everything(tmp_path).items() if "out.part" not in path}
    assert after == before  # what extraction has done so far is kept beside it, to go on from


# Adapters


BAD_FIELDS: dict[str, Any] = {
    "alpha-huge": {"alpha": 10**29},
    "alpha-text": {"alpha": "16"},
    "alpha-true": {"alpha": True},
    "alpha_pattern-null": {"alpha_pattern": None},
    "alpha_pattern-list": {"alpha_pattern": [1.0]},
    "rank_pattern-null": {"rank_pattern": None},
    "rank_pattern-list": {"rank_pattern": ["query"]},
    "rank_pattern-regex": {"rank_pattern": {"(": 2}},
    "alpha_pattern-regex": {"alpha_pattern": {"*": 2.0}},
    "formula-number": {"formula": 7},
    "pattern-number": {"pattern": 7},
    "method-list": {"method": ["lora"]},
    "starts-list": {"starts": ["A"]},
    "r-huge": {"r": 10**9},
    "r-null": {"r": None},
    "target_modules-number": {"target_modules": 3},
    "target_modules-regex": {"target_modules": "("},
    "target_modules-nested": {"target_modules": [["query"]]},
    "modules_to_save-text": {"modules_to_save": 4},
    "entries-list": {"entries": [1]},
    "schedule-text": {"schedule": "soon"},
    "pattern_weight-text": {"pattern_weight": "1"},
    "gate_weight-null": {"gate_weight": None},
    "budget-list": {"budget": [1]},
    "layers_to_transform-text": {"layers_to_transform": "first"},
    "calibrated-text": {"calibrated": "yes"},
    "format-zero": {"format": 0},
    "peft_type-unknown": {"peft_type": "FORTRAN"},
    "peft_type-null": {"peft_type": None},
    "peft_type-list": {"peft_type": []},
    "peft_type-other": {"peft_type": "LORA"},
    "task_type-unknown": {"task_type": "POETRY"},
    "task_type-list": {"task_type": ["SEQ_CLS"]},
}


@pytest.fixture
def copied(adapters: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(adapters[name], tmp_path / name))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_config_of_wrong_types(
    case: str, copied: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied("lora")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | BAD_FIELDS[case]), encoding="utf-8")
    refused(["convert", folder, "--to", "lora", "-o", tmp_path / "out"], tmp_path, capfd)


NOT_JSON = {
    "nested": b"[" * 100_000,
    "nested-object": b'{"a":' * 100_000,
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"[]",
    "number": b"9" * 5000,
    "null": b"null",
}


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("case", [*NOT_JSON, "missing", "folder"])
def test_a_damaged_adapter(
    case: str, file: str, copied: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied("lora")
    (folder / file).unlink()
    if case == "folder":
        (folder / file).mkdir()
    elif case != "missing":
        (folder / file).write_bytes(NOT_JSON[case])
    refused(["convert", folder, "--to", "lora", "-o", tmp_path / "out"], tmp_path, capfd)


@pytest.mark.parametrize("damage", ["missing", "longer", "wider", "flat"])
@pytest.mark.parametrize("name", [*ADAPTERS, "peft"])
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_factors_that_do_not_fit_each_other(
    command: str,
    name: str,
    damage: str,
    copied: Callable[[str], Path],
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = copied(name)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in sorted(tensors) if "query" in key)
    tensor = tensors.pop(key)
    if damage == "missing" and name == "sam_parser":
        pytest.skip("its layers have one factor: without it the file knows nothing of the layer")
    if damage == "wider" and tensor.dim() < 2:
        pytest.skip("a vector has one length")
    spoilt = {
        "longer": torch.cat([tensor, tensor[:1]]),
        "wider": torch.cat([tensor, tensor[..., :1]], -1),
        "flat": tensor[None],
    }
    if damage != "missing":
        tensors[key] = spoilt[damage].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    to_base: dict[str, Words] = {
        "inspect": ["inspect", tiny_model, folder],
        "convert": ["convert", folder, "--to", "peft-lora", "--base", tiny_model, "-o", tmp_path / "out"],
    }
    refused(to_base[command], tmp_path, capfd)


BAD_MODEL = {
    "hidden_size": "wide",
    "num_hidden_layers": -1,
    "num_attention_heads": 0,
    "vocab_size": None,
    "model_type": "fortran",
    "architectures": [["x"]],
    "hidden_act": 7,
}


@pytest.mark.parametrize("field", BAD_MODEL)
@pytest.mark.parametrize("command", ["inspect", "params"])
def test_a_model_of_wrong_types(
    command: str,
    field: str,
    adapters: dict[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {field: BAD_MODEL[field]}))
    if field == "architectures" and command == "params":
        pytest.skip("counting does not ask for the class that was saved")
    words: Words = ["inspect", folder, adapters["lora"]] if command == "inspect" else ["params", folder, "-m", "lora"]
    refused(words, tmp_path, capfd)


# Configs


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 3000,
        "1: 2",
        "- a",
        "7",
        "a: &x [*x]",
        "a: !!python/object/apply:os.system ['true']",
        "a: 2020-99-99",
        "training: {seed: " + "9" * 5000 + "}",
        "\x00",
        "model: ${oc.env:NOWHERE}",
        "model: ${model}",
    ],
    ids=range(12),
)
def test_a_config_file_that_makes_no_run(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    refused(["train", tmp_path / "run.yaml"], tmp_path, capfd)


@pytest.mark.parametrize(
    "override",
    [
        "task.data=" + "x" * 5000,
        "model=" + "x" * 5000,
        "output=" + "x" * 5000,
        "model='a\\0b'",
        'output="a\\0b"',
        "task.data=~nobody-at-all/data",
        "output=~nobody-at-all/run",
        "training.threads=1000000000",
        "training.batch_size=1000000000000",
        "training.epochs=1e30",
        "training.seed=-1",
        "adapter.r=1000000000",
        "adapter.alpha=1e29",
        "adapter={method: [lora]}",
        "task.name=null",
    ],
)
def test_a_value_out_of_all_range(
    override: str,
    calls: dict[str, Callable[[Path], Words]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = calls["train"](tmp_path / "out")
    if override.startswith("adapter."):
        words.append("adapter.method=lora")
    refused([*words, override], tmp_path, capfd)


# Run folders


@pytest.mark.parametrize("name", ["run.json", "started.json"])
@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"config": []}', '{"config": {}, "result": "model"}', "{", "", "[" * 100_000, "folder"]
)
def test_a_damaged_run_folder(
    name: str,
    content: str,
    calls: dict[str, Callable[[Path], Words]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = calls["train"](out)
    from subspace_tuning.training import config as configs

    started = {"config": configs.load(str(words[1]), [str(words[2])]).resolved()}
    (out / "started.json").write_text(json.dumps(started), encoding="utf-8")
    if content == "folder":
        (out / name).unlink(missing_ok=True)
        (out / name).mkdir()
    else:
        (out / name).write_text(content, encoding="utf-8")
    refused(words, tmp_path, capfd)


@pytest.mark.parametrize("name", ["lock", "adapter", "model", "checkpoints"])
def test_something_of_the_other_kind_in_a_run_folder(
    name: str, calls: dict[str, Callable[[Path], Words]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if name == "lock":
        (out / name).mkdir()
    else:
        (out / name).write_text("mine", encoding="utf-8")
    refused(calls["train"](out), tmp_path, capfd)


def test_a_process_without_its_launcher_is_refused(
    calls: dict[str, Callable[[Path], Words]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start them with torchrun" in refused(calls["train"](tmp_path / "out"), tmp_path, capfd)


# The place where errors are told


def _recursion() -> None:
    json.loads("[" * 100_000)


def _raiser(error: BaseException) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Makes `subspace methods` fail in its body."""

    def fail_with(function: Callable[..., None]) -> None:
        monkeypatch.setattr(methods_command, "show", function)

    return fail_with


TOLD = [
    *(OSError(code, os.strerror(code), "/some/file") for code in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)),
    *(OSError(code, os.strerror(code)) for code in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EDQUOT)),
    ConnectionError("unreachable"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4e18 bytes.\nmore"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    json.JSONDecodeError("Expecting value", "", 0),
    yaml.YAMLError("a mistake\nin two lines"),
    NotLinearError("phi(W) is not one matrix"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", TOLD, ids=repr)
def test_what_the_machine_and_its_files_refuse_is_one_line(
    error: Exception,
    failing: Callable[[Callable[..., None]], None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    failing(_raiser(error))
    refused(["methods"], tmp_path, capfd)


def test_input_that_is_nested_too_deeply_is_one_line(
    failing: Callable[[Callable[..., None]], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(lambda table: _recursion())
    assert "nested too deeply" in refused(["methods"], tmp_path, capfd)


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("x"), RecursionError(), AssertionError()], ids=repr)
def test_a_fault_of_the_code_shows_its_traceback(
    error: Exception, failing: Callable[[Callable[..., None]], None]
) -> None:
    failing(_raiser(error))
    with pytest.raises(type(error)):
        main(["methods"])


def test_an_interruption_is_no_fault(
    failing: Callable[[Callable[..., None]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    failing(_raiser(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as caught:
        main(["methods"])
    assert caught.value.code == 130
    assert capfd.readouterr().err == "subspace: interrupted\n"


def test_the_filters_of_warnings_stay_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(warnings.filters)
    with pytest.raises(SystemExit):
        main(["params", "minilm", "-m", "ssb"])
    assert warnings.filters == before


# Writing


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"
    for text in ("old", "new"):
        with writing.replaced(folder) as temporary:
            (temporary / "file").write_text(text, encoding="utf-8")
    assert everything(tmp_path) == {str(folder): None, str(folder / "file"): b"new"}
    with pytest.raises(IsADirectoryError), writing.replaced(folder) as temporary:
        temporary.write_text("half", encoding="utf-8")
    assert everything(tmp_path) == {str(folder): None, str(folder / "file"): b"new"}


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    script = (
        "import os, sys; from pathlib import Path; from subspace_tuning import files as writing\n"
        "rename, count = Path.rename, []\n"
        "def kill(self, target):\n"
        "    count.append(1)\n"
        "    return rename(self, target) if len(count) == 1 else os._exit(9)\n"
        "Path.rename = kill\n"
        "with writing.replaced(Path(sys.argv[1])) as temporary: (temporary / 'file').write_text('new')\n"
    )
    folder.mkdir()
    (folder / "file").write_text("old", encoding="utf-8")
    child = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", script, str(folder)])
    assert child == 9
    assert not folder.exists()
    writing.recover(folder)
    assert everything(tmp_path) == {str(folder): None, str(folder / "file"): b"old"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("long-" * 48)  # a legal name, beside which no longer one is
    writing.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        writing.write_json(path, {"a": float("nan")})
    assert everything(tmp_path) == {str(path): b'{\n  "a": 1\n}\n'}
    gone = tmp_path / f".{path.name[:40]}.999999999.tmp"
    gone.write_text("of a process that is gone", encoding="utf-8")
    writing.write_json(path, {"a": 2})
    assert list(tmp_path.iterdir()) == [path]
