"""Comparisons with real runs of the tiny model: the command, sizes, splits, and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers
import yaml

from subspace_cli import main
from subspace_tuning import methods, tasks
from subspace_tuning.algebra import FormulaError
from subspace_tuning.comparison import config as configs
from subspace_tuning.comparison.grid import cells
from subspace_tuning.comparison.owners import is_gone
from subspace_tuning.comparison.sizes import size_of
from subspace_tuning.comparison.store import Store
from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.meta import architecture_of
from subspace_tuning.training import run as train
from subspace_tuning.training.attach import attach
from subspace_tuning.training.sections import FULL, HEAD, AdapterSection
from subspace_tuning.tuner.targets import NothingToAdaptError

from .calls import printed_by, refusal_of
from .snippets import fences

ROOT = Path(__file__).parents[2]
FORMULA = "D1 @ W @ D2 + s * A @ B"
Settings = dict[str, Any]


def settings_of(model: Path, data: Path, folder: Path) -> Settings:
    """A comparison of eight runs of three steps."""
    return {
        "store": str(folder / "store.sqlite"),
        "models": [str(model)],
        "tasks": {"cola": {"data": str(data), "max_length": 16}},
        "rows": {"scaled": {"method": "ssb"}, "mine": {"formula": FORMULA, "r": 2, "around": 0.02}},
        "base": {"training": {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}},
        "seeds": [1, 2],
        "tuning": {
            "seeds": [7],
            "split": 0.25,
            "extend_edges": 0,
            "rates": {"around": 0.01, "tries": 2, "factor": 4},
        },
    }


@pytest.fixture
def comparison(lively: Path, data: Path, tmp_path: Path) -> Settings:
    return settings_of(lively, data, tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, Any]], str]:
    def write_config(content: Mapping[str, Any]) -> str:
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
        return str(path)

    return write_config


@pytest.fixture(scope="module")
def finished(lively: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The store of a finished comparison, and its config's file."""
    folder = tmp_path_factory.mktemp("finished")
    content = settings_of(lively, data, folder)
    theirs = {"peft": {"peft_type": "LORA", "r": 2, "target_modules": ["query", "value"]}}
    content["rows"] = {"theirs": theirs, "mine": content["rows"]["mine"]}
    (folder / "compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(folder / "compare.yaml")])
    assert ended.value.code == 0
    return Path(content["store"]), str(folder / "compare.yaml")


def test_scores_are_those_of_the_predictions(finished: tuple[Path, str]) -> None:
    store = Store(finished[0])
    runs = store.frame()
    assert set(runs["state"]) == {"done"} and len(runs) == 8
    task = tasks.get("cola")
    sizes = {"tuning": 12, "report": 24}  # a quarter of the training rows, and the validation rows
    references: dict[str, list[Any]] = {stage: [] for stage in sizes}
    for run, stage, score in zip(runs["run"], runs["stage"], runs["score"], strict=True):
        truth, predictions = store.outcomes(run)
        assert len(truth) == len(predictions) == sizes[stage]
        assert task.score(predictions, truth)[task.primary] == score == store.scores(run)[task.primary]
        references[stage].append(truth)
        assert [step for step, _ in store.curve(run)] == [1, 2, 3]
    # The items of two runs of a stage correspond.
    assert all(np.array_equal(one, known[0]) for known in references.values() for one in known)
    assert runs.groupby("row")["trained"].nunique().eq(1).all() and (runs["head"] > 0).all()
    assert (runs["seconds"] > 0).all() and (runs["memory"] > 0).all()
    assert not finished[0].with_name("store.sqlite.runs").exists()


def test_the_planned_counts_are_those_of_the_runs(finished: tuple[Path, str]) -> None:
    runs = Store(finished[0]).frame()
    planned = {cell.row: cell.trained for cell in cells(configs.load(finished[1]))}
    assert dict(zip(runs["row"], runs["trained"], strict=True)) == planned


def test_a_finished_comparison_is_not_repeated(
    finished: tuple[Path, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = finished
    before = Store(store).frame()
    monkeypatch.setattr(train, "_prepare", None)  # a run would need it
    output = printed_by(["compare", config], capfd)
    assert output.startswith("8 runs, 8 of them ended\n")
    for row in ("theirs", "mine"):
        assert any(line.startswith(row) for line in output.splitlines())
    pd.testing.assert_frame_equal(Store(store).frame(), before)
    content = store.read_bytes()
    output = printed_by(["compare", config, "seeds=[1,2,3]", "--dry-run"], capfd)
    assert "10 runs, 8 of them done, 0 failed, 2 left" in output
    assert store.read_bytes() == content and len(list(store.parent.iterdir())) == 2


def test_a_dry_run_makes_nothing(
    comparison: Settings, write: Callable[[Any], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = printed_by(["compare", write(comparison | {"budgets": [None, 1000]}), "--dry-run"], capfd)
    assert "16 runs, 0 of them done, 0 failed, 16 left\ntime left: known once a run is done" in output
    assert [path.name for path in tmp_path.iterdir()] == ["compare.yaml"]


# Sizes

QUICK = ["ssb", "lora", "diff_pruning", "s_bitfit", "prefix_tuning", "mam", FULL, HEAD]
ALL = [*(known.name for known in methods.listed()), FULL, HEAD]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ALL]
)
def test_no_other_size_is_closer_to_a_budget(method: str, tiny_model: Path) -> None:
    architecture = architecture_of(str(tiny_model))

    def trained(adapter: AdapterSection) -> int:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model)
        batch = {"input_ids": model.dummy_inputs["input_ids"] % 30, "labels": [0] * 3}
        batch = {
            name: transformers.BatchEncoding({name: value}, tensor_type="pt")[name] for name, value in batch.items()
        }
        return attach(model, adapter, tasks.get("cola").task_type, lambda: [batch])[1].adapter

    budget, known = 900, methods.find(method)
    try:
        found = size_of(architecture, AdapterSection(method), budget)
    except NothingToAdaptError:
        with pytest.raises(NothingToAdaptError):
            trained(AdapterSection(method))
        return
    # What data choose is entries, or else whole biases or terms, whose sizes are known once they are chosen.
    if known is None or not known.needs_calibration or (known.formula.masked and not known.formula.has_rank):
        assert found.trained == trained(found.adapter)
        assert size_of(architecture, AdapterSection(method), None).trained == trained(AdapterSection(method))
    if found.adapter.r is not None and method not in (FULL, HEAD):
        for r in {max(1, found.adapter.r - 1), found.adapter.r + 1}:
            with suppress(FormulaError):  # no formula of that rank can leave its start
                other = size_of(architecture, replace(found.adapter, r=r), None).trained
                assert abs(other - budget) >= abs(found.trained - budget)


@pytest.mark.parametrize("budget", [200, 900, 5000])
def test_configs_of_pefts_own_are_brought_to_a_budget(budget: int, tiny_model: Path) -> None:
    """Those of LoRA have the rank, and the count, that this package's LoRA has."""
    architecture = architecture_of(str(tiny_model))
    targets = ["query", "value"]
    theirs = AdapterSection(peft={"peft_type": "LORA", "target_modules": targets})
    found = size_of(architecture, theirs, budget)
    ours = size_of(architecture, AdapterSection("lora", target_modules=targets), budget)
    assert found.adapter.peft is not None
    assert (found.adapter.peft["r"], found.trained) == (ours.adapter.r, ours.trained)


# Splits


def test_rows_for_tuning_are_training_rows(data: Path) -> None:
    task, rows = tasks.get("cola").prepare(str(data))
    parted = tasks.for_tuning(task, rows, 0.25)
    texts = {name: list(part[name].texts[0]) for part in (parted,) for name in part}
    assert sorted(texts["train"] + texts["validation"]) == sorted(rows["train"].texts[0])
    assert len(texts["validation"]) == 12
    again = tasks.for_tuning(task, rows, 0.25)
    assert all(parted[name].fingerprint() == again[name].fingerprint() for name in parted)
    with pytest.raises(SubspaceError, match="none is left to train or to score with"):
        tasks.for_tuning(task, rows, 0.001)


# The config


def test_the_example_is_that_of_the_page() -> None:
    [shown] = [fence.text for fence in fences(ROOT / "docs/compare.md") if fence.kind == "yaml"]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "examples/compare.yaml").read_text(encoding="utf-8"))


def test_the_identity_of_a_run_is_what_its_result_depends_on(
    comparison: Settings, write: Callable[[Any], str], tiny_model: Path
) -> None:
    def ids(*overrides: str) -> list[str]:
        return [cell.run("report", 0.1, 1).id for cell in cells(configs.load(write(comparison), overrides))]

    first = ids()
    assert len(set(first)) == 2
    for same in (["store=elsewhere"], ["seeds=[5]"], ["tuning=null"], ["base.training.threads=1"]):
        assert ids(*same) == first
    changes = [
        "base.training.epochs=2",
        "tasks.cola.train_rows=40",
        f"models=['{tiny_model}']",
        "rows.scaled.method=ssl",
    ]
    assert not {one for change in changes for one in ids(change)[:1]} & set(first)
    assert ids("rows.scaled.method=ssl")[1] == first[1]


def _without(content: Settings, key: str) -> Settings:
    return {name: value for name, value in content.items() if name != key}


BAD: dict[str, tuple[Callable[[Settings], Settings], str]] = {
    "no rows": (lambda c: c | {"rows": {}}, "the comparison has no runs: rows is empty"),
    "no seeds": (lambda c: c | {"seeds": []}, "the comparison has no runs: seeds is empty"),
    "no models": (lambda c: c | {"models": []}, "the comparison has no runs: models is empty"),
    "no store": (lambda c: _without(c, "store"), "'store' must be given"),
    "an unknown key": (lambda c: c | {"seed": [1]}, "unknown key 'seed'; did you mean seeds"),
    "an unknown key of tuning": (
        lambda c: c | {"tuning": {"seed": [1]}},
        "unknown key 'tuning.seed'; did you mean seeds",
    ),
    "an unknown key of a row": (
        lambda c: c | {"rows": {"a": {"method": "ssb", "rr": 1}}},
        "row 'a' on task 'cola': its config: unknown key 'adapter.rr'",
    ),
    "an unknown method": (lambda c: c | {"rows": {"a": {"method": "lorra"}}}, "did you mean lora"),
    "no method": (
        lambda c: c | {"rows": {"a": {}}},
        "row 'a' on task 'cola': adapter needs a method or a formula: neither is given",
    ),
    "an unknown section": (
        lambda c: c | {"base": {"trainin": {}}},
        "base.trainin is not shared by runs: did you mean training",
    ),
    "a task without data": (
        lambda c: c | {"tasks": {"news": {"name": "classification"}}},
        "task 'news': task classification needs task.data",
    ),
    "an unknown task": (lambda c: c | {"tasks": {"colla": None}}, "unknown task 'colla': did you mean cola"),
    "a rate grid of one value": (
        lambda c: c | {"tuning": {"rates": {"tries": 1}}},
        "tuning.rates.tries is 1: a grid of one rate chooses nothing",
    ),
    "a grid of equal rates": (lambda c: c | {"tuning": {"rates": {"factor": 1}}}, "the grid would be one rate"),
    "shared seeds": (lambda c: c | {"tuning": {"seeds": [2]}}, "seed 2 is in tuning.seeds and in seeds"),
    "a seed twice": (lambda c: c | {"seeds": [1, 1]}, "seeds has 1 twice"),
    "a seed in base": (
        lambda c: c | {"base": {"training": {"seed": 1}}},
        "base.training.seed is set by the comparison",
    ),
    "a rate in base": (
        lambda c: c | {"base": {"training": {"learning_rate": 1}}},
        "base.training.learning_rate is tuned",
    ),
    "a wrong rate": (
        lambda c: c | {"tuning": {"rates": {"around": "deriv"}}},
        "it must be derived or a positive number",
    ),
    "a small split": (lambda c: c | {"tuning": {"split": 0.001}}, "task 'cola': the training data has 48 rows"),
    "a wrong budget": (lambda c: c | {"budgets": ["many"]}, "budget 'many' is neither a number such as 300k"),
    "an unknown model": (lambda c: c | {"models": ["./none"]}, "model folder './none' does not exist"),
    "an unknown type of peft's": (
        lambda c: c | {"rows": {"a": {"peft": {"peft_type": "LORRA"}}}},
        "adapter.peft has peft_type 'LORRA'; did you mean LORA",
    ),
    "an unknown field of peft's": (
        lambda c: c | {"rows": {"a": {"peft": {"peft_type": "LORA", "rr": 1}}}},
        "adapter.peft: LoraConfig has no field 'rr'; did you mean r",
    ),
    "a method beside peft's": (
        lambda c: c | {"rows": {"a": {"method": "lora", "peft": {"peft_type": "LORA"}}}},
        "adapter.peft is a whole config: leave adapter.method out",
    ),
    "a misplaced value": (lambda c: c | {"rows": {"a": 3}}, "rows.a is 3: it must have keys with values"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_line_and_nothing_is_made(
    name: str, comparison: Settings, write: Callable[[Any], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, told = BAD[name]
    assert told in refusal_of(["compare", write(change(comparison))], capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["compare.yaml"]


def test_two_rows_of_one_name_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text("rows:\n  a: {method: ssb}\n  a: {method: lora}\n", encoding="utf-8")
    assert "found duplicate key a in line 3" in refusal_of(["compare", str(path)], capfd)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_wrong_shard_is_told(shard: str, finished: tuple[Path, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert "is not a share such as 1/4" in refusal_of(["compare", finished[1], "--shard", shard], capfd)


def test_a_store_that_cannot_be_made_is_told(finished: tuple[Path, str], capfd: pytest.CaptureFixture[str]) -> None:
    for store in ("/proc/subspace/store", str(finished[0].parent), f"{finished[1]}/store"):
        refusal_of(["compare", finished[1], f"store={store}"], capfd)


# Kills


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 2), (2, 20), (4, 6)])
def test_killed_commands_end_where_an_undisturbed_one_does(
    workers: int, kills: int, comparison: Settings, write: Callable[[Any], str], capfd: pytest.CaptureFixture[str]
) -> None:
    comparison["base"]["training"] |= {"epochs": 12, "save_steps": 2}
    config = write(comparison)
    whole = comparison["store"] + "-whole"
    printed_by(["compare", config, f"store={whole}"], capfd)
    command = [sys.executable, "-c", "from subspace_cli import main; main()", "compare", config]
    command += ["--workers", str(workers)]
    rng, killed = random.Random(workers), 0
    while killed < kills:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if not _wait_for_a_run(Path(comparison["store"]), process):
            break  # all is done
        time.sleep(rng.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert killed > 0
    _assert_same(Store(comparison["store"]), Store(whole))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a system with limits of files")
@pytest.mark.parametrize("limit", [70_000, 150_000])
def test_a_disk_that_fills_up_within_a_run_loses_nothing(
    limit: int, comparison: Settings, write: Callable[[Any], str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first limit is below the weights of a checkpoint, the second below the optimiser's state."""
    comparison["rows"] = {"full": {"method": FULL}, "scaled": comparison["rows"]["scaled"]}
    config = write(comparison)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code = f"{limited}from subspace_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "compare", config], capture_output=True, text=True, check=False)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and told.startswith("subspace: the run in ") and told.endswith("and call again"), told
    assert set(Store(comparison["store"]).frame()["state"]) <= {"waiting", "running", "done"}
    printed_by(["compare", config], capfd)
    assert set(Store(comparison["store"]).frame()["state"]) == {"done"}


def _wait_for_a_run(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Until a run is being made that was not before; whether there is one."""
    while process.poll() is None:
        time.sleep(0.05)
        if path.exists():
            with suppress(SubspaceError):  # it is being made
                owners = Store(path).database
                with owners.read() as connection:
                    held = connection.exec_driver_sql("SELECT owner FROM runs WHERE state = 'running'").scalars().all()
                if any(not is_gone(owner) for owner in held):
                    return True
    return False


def _assert_same(disturbed: Store, whole: Store) -> None:
    columns = ["seconds", "memory"]
    frame = whole.frame().drop(columns=columns)
    pd.testing.assert_frame_equal(disturbed.frame().drop(columns=columns), frame)
    assert set(frame["state"]) == {"done"}
    for run in frame["run"]:
        assert disturbed.curve(run) == whole.curve(run) and disturbed.scores(run) == whole.scores(run)
        for one, other in zip(disturbed.outcomes(run), whole.outcomes(run), strict=True):
            assert np.array_equal(one, other)
