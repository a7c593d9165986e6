"""Runs on own files: trained, interrupted, evaluated, asked and merged, for every kind of task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from subspace_cli import main
from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import HOSTED
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training import use
from subspace_tuning.training.merge import merge
from subspace_tuning.training.run import Outcome
from subspace_tuning.training.sections import (
    AdapterSection,
    Device,
    Precision,
    RunConfig,
    TaskSection,
    TrainingSection,
)

from ..tasks.own_files import ROWS, WRITERS, write
from .calls import printed_by, refusal_of
from .test_resume import _interrupt, _same_weights

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]
Run = Callable[..., Outcome]
KINDS = tuple(ROWS)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A run of four steps on own rows of the kind that a test puts in."""
    settings["training"] |= {"batch_size": 16, "max_steps": 4}
    settings["task"] = {"max_length": 16}
    return settings


@pytest.fixture
def run(settings: Settings, write: Write, tmp_path: Path) -> Run:
    """Runs a kind of task on its rows; keywords are keys of the task's section."""

    def run_kind(kind: str, *overrides: str, form: str = "csv", **options: Any) -> Outcome:
        rows = ROWS[kind]
        source = _source(tmp_path, form, rows)
        settings["task"] |= {"name": kind, "data": source, **options}
        return train.run(configs.load(write(settings), overrides), progress=False)

    return run_kind


def _source(folder: Path, form: str, rows: Any, name: str = "rows") -> str:
    path = folder / f"{name}.{form}"
    return str(path) if path.exists() else write(folder, form, rows, name)


class Trained(NamedTuple):
    """A finished run, and the file of its validation rows."""

    kind: str
    outcome: Outcome
    folder: str
    validation: str


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of four steps for each kind of task."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    validation = write(folder, "jsonl", ROWS[kind][:13], "other")
    config = RunConfig(
        model=str(lively),
        output=str(folder / "run"),
        task=TaskSection(name=kind, data=write(folder, "csv", ROWS[kind]), max_length=16, validation=validation),
        adapter=AdapterSection(method="ssb"),
        training=TrainingSection(
            learning_rate=0.01, max_steps=4, batch_size=16, threads=1, device=Device.cpu, precision=Precision.float32
        ),
    )
    return Trained(kind, train.run(config, progress=False), config.output, validation)


def test_a_run_is_evaluated_with_its_own_figures(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = trained.outcome.record
    assert (record["task"], record["data"]["train"]["rows"]) == (trained.kind, 30)
    file = tmp_path / "figures.json"
    words = ["evaluate", trained.folder, "--data", trained.validation, "--batch-size", "5", "-o", str(file)]
    printed = printed_by(words, capfd)
    figures = json.loads(file.read_text(encoding="utf-8"))
    own = {name: figure for name, figure in record["final"].items() if name not in ("epoch", "step", "loss")}
    assert len(own) > 1 and figures["rows"] == 13
    low, high = record["score_interval"]
    assert own[f"{record['metric']}_low"] == low <= record["score"] <= high == own[f"{record['metric']}_high"]
    for name, figure in own.items():
        assert figures[name] == pytest.approx(figure, rel=1e-4, abs=1e-5)
        assert name in printed


def test_a_run_says_what_it_thinks_of_new_rows(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, outcome = trained.kind, trained.outcome
    classes = outcome.record["options"].get("classes")
    column = "tokens" if kind == "token_classification" else "text"
    rows = [{column: row[column]} for row in ROWS[kind][:11]]
    asked = write(tmp_path, "jsonl", rows, "asked")
    answers = {form: tmp_path / f"answers.{form}" for form in ("jsonl", "csv")}
    for file in answers.values():
        assert "11 rows" in printed_by(["predict", trained.folder, "--file", asked, "-o", str(file)], capfd)
    lines = [json.loads(line) for line in answers["jsonl"].read_text(encoding="utf-8").splitlines()]
    assert [line[column] for line in lines] == [row[column] for row in rows]
    for line in lines:
        predicted = line["predicted"]
        if kind == "regression":
            assert isinstance(predicted, float)
        else:
            assert {*([predicted] if isinstance(predicted, str) else predicted)} <= {*classes}
        if kind == "classification":
            assert sum(line["probabilities"].values()) == pytest.approx(1.0)
            assert line["probability"] == line["probabilities"][predicted] == max(line["probabilities"].values())
    table = pd.read_csv(answers["csv"], dtype={"predicted": str}, keep_default_na=False)
    assert len(table) == 11 and list(table.columns)[:2] == [column, "predicted"]
    assert kind not in ("classification", "multi_label") or {f"probabilities.{c}" for c in classes} < {*table.columns}
    printed = printed_by(["predict", str(outcome.folder), "--text", "ba dek", "-t", "go"], capfd)
    assert "predicted" in printed and len(printed.splitlines()) == 3


def _stands_alone(outcome: Outcome, validation: str, merged: Path) -> None:
    made = use.finished(outcome.folder)
    rows = made.task.read(validation)
    before, (figures, _) = made.task.values(use.outputs_of(made, rows, 32).outputs), use.evaluate(made, rows, 32)
    told = merge(made, merged)
    assert told.difference < 1e-4 * max(1.0, told.largest)
    # transformers alone: its own class, the classes' names, the file's units.
    model = made.task.model_class.from_pretrained(merged).eval()
    if classes := outcome.record["options"].get("classes"):
        assert [model.config.id2label[number] for number in range(len(classes))] == classes
    batch = made.task.collator(made.processor)(list(made.task.encode(rows, made.processor, 16)))
    batch.pop("labels")
    with torch.no_grad():
        assert model(**batch).logits.numpy() == pytest.approx(before, rel=1e-3, abs=1e-3)
    again = use.finished(merged)
    primary = made.task.primary
    assert use.evaluate(again, again.task.read(validation), 32)[0][primary] == pytest.approx(figures[primary], rel=1e-3)


def test_a_merged_run_stands_alone(trained: Trained, tmp_path: Path) -> None:
    _stands_alone(trained.outcome, trained.validation, tmp_path / "merged")


def test_a_run_without_an_adapter_stands_alone_in_the_files_units(run: Run, settings: Settings, tmp_path: Path) -> None:
    _stands_alone(run("regression", "adapter.method=full"), settings["task"]["data"], tmp_path / "merged")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if "token" in kind else [pytest.mark.slow]) for kind in KINDS]
)
def test_a_run_on_own_files_goes_on_where_it_stopped(
    kind: str, settings: Settings, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {} if kind == "regression" else {"class_weights": True}
    settings["task"] |= {"name": kind, "data": _source(tmp_path, "jsonl", ROWS[kind]), **weights}
    settings["training"] |= {"batch_size": 8, "max_steps": 9, "save_steps": 2}
    config = configs.load(write(settings))
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    _interrupt(config, 5, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] == 4
    assert parted.record["history"] == whole.record["history"]
    assert parted.record["options"] == whole.record["options"]
    assert _same_weights(parted.folder, whole.folder)


def test_a_run_whose_classes_have_changed_does_not_go_on(
    settings: Settings, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": row["text"], "label": f"old {row['label']}"} for row in ROWS["classification"]]
    settings["task"] |= {"name": "classification", "data": _source(tmp_path, "jsonl", rows)}
    config = configs.load(write(settings))
    _interrupt(config, 1, monkeypatch)
    renamed = [{**row, "label": row["label"].replace("old", "new")} for row in rows]
    WRITERS["jsonl"](tmp_path / "rows.jsonl", renamed)
    with pytest.raises(SubspaceError, match=r"the run cannot be resumed: task\.classes is \['old 01'"):
        train.run(config, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_file_gives_the_same_run(kind: str, settings: Settings, write: Write, tmp_path: Path) -> None:
    settings["training"]["max_steps"] = 2
    found = []
    for form in WRITERS:
        settings["task"] |= {"name": kind, "data": _source(tmp_path, form, ROWS[kind])}
        config = configs.load(write({**settings, "output": str(tmp_path / f"run-{form}")}))
        record = train.run(config, progress=False).record
        found.append({key: record[key] for key in ("history", "baseline", "data", "options", "cut")})
    assert len(found) == 8 and all(one == found[0] for one in found)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "houlsby" else [pytest.mark.slow])
        for name in ("mam", "houlsby", "bitfit", "head")
    ],
)
def test_every_sort_of_method_is_used(
    method: str, run: Run, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = run(
        "classification", f"adapter.method={method}", validation=_source(tmp_path, "csv", ROWS["classification"])
    )
    made = use.finished(settings["output"])
    figures, _ = use.evaluate(made, made.task.read(settings["task"]["data"]), 8)
    assert figures["accuracy"] == pytest.approx(record.record["final"]["accuracy"])
    if method in ("bitfit", "head"):
        assert merge(made, tmp_path / "merged").difference < 1e-4
    else:
        assert method in HOSTED or method == "houlsby"
        line = refusal_of(["merge", settings["output"], "-o", str(tmp_path / "merged")], capfd)
        assert "cannot be merged" in line and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("format", ["nf4", "torchao_int8"])
def test_a_run_on_quantised_weights_is_used_with_them_and_merged_without(
    format: str, run: Run, settings: Settings, tmp_path: Path
) -> None:
    pytest.importorskip("torchao" if format.startswith("torchao") else "bitsandbytes")
    validation = _source(tmp_path, "csv", ROWS["regression"])
    record = run("regression", f"quantise={format}", "adapter.method=lora", validation=validation).record
    made = use.finished(settings["output"])
    figures, _ = use.evaluate(made, made.task.read(validation), 32)
    assert figures["rmse"] == pytest.approx(record["final"]["rmse"], rel=1e-3)
    whole = use.finished(settings["output"], quantise=False)
    assert all(parameter.dtype == torch.float32 for parameter in whole.model.parameters())
    told = merge(whole, tmp_path / "merged")
    assert told.difference < 1e-4 * told.largest


def test_a_glue_run_is_used_as_well(
    settings: Settings, data: Path, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    settings["task"] = {"name": "cola", "data": str(data), "max_length": 16}
    record = train.run(configs.load(write(settings)), progress=False).record
    printed = printed_by(["evaluate", settings["output"], "--data", str(data / "validation.jsonl")], capfd)
    assert f"{record['score']:.4f}" in printed
    assert "acceptable" in printed_by(["predict", settings["output"], "--text", "bak de"], capfd)


def test_a_run_needs_no_file_of_settings(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": row["text"], "category": row["label"]} for row in ROWS["classification"]]
    source = _source(tmp_path, "csv", rows)
    words = [f"model={tiny_model}", f"output={tmp_path / 'run'}", "adapter.method=lora", "training.max_steps=1"]
    words += ["task.max_length=16"]
    words += ["task.name=classification", f"task.data={source}", "task.label=category"]
    assert "24 train, 6 validation" in printed_by(["train", *words], capfd)
    assert "'model' must be given" in refusal_of(["train", *words[1:]], capfd)
    other = [*words[:-1], "task.label=labels", f"output={tmp_path / 'other'}"]
    assert "no column 'labels', known: category, text; task.label names" in refusal_of(["train", *other], capfd)


def test_what_is_cut_is_told(
    run: Run, settings: Settings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run("classification", max_length=5)
    longer = [row["text"] for row in ROWS["classification"] if len(row["text"].split()) > 3]
    assert sum(outcome.record["cut"].values()) == len(longer) > 0
    assert "train rows are longer than task.max_length = 5 tokens and are truncated" in caplog.text
    with pytest.raises(SystemExit):
        main(["predict", settings["output"], "--text", longer[0], "--text", "ba"])
    assert "1 of the 2 rows are longer than 5 tokens and are truncated" in capfd.readouterr().err


def test_a_run_that_cannot_be_used_is_told(
    run: Run, settings: Settings, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run("classification")
    output, text = settings["output"], ["--text", "ba"]
    assert "run 'nowhere' does not exist: give the folder" in refusal_of(["predict", "nowhere", *text], capfd)
    assert f"{tmp_path} has no run" in refusal_of(["predict", str(tmp_path), *text], capfd)
    assert "give texts with --text, or rows with --file" in refusal_of(["predict", output], capfd)
    assert "--text number 1 has no text" in refusal_of(["predict", output, "--text", " "], capfd)
    assert "ends in .csv or .jsonl" in refusal_of(["predict", output, *text, "-o", "answers.xlsx"], capfd)
    wrong = _source(tmp_path, "csv", [{"text": "ba", "label": "02"}], "wrong")
    assert "wrong.csv, line 2: column 'label' has '02'" in refusal_of(["evaluate", output, "--data", wrong], capfd)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("", encoding="utf-8")
    line = refusal_of(["merge", output, "-o", str(tmp_path / "full"), "--overwrite"], capfd)
    assert "is not empty and has no merged model" in line
    own = str(outcome.folder)
    assert "holds a model: choose another --output" in refusal_of(["merge", output, "-o", own], capfd)
    assert "is the run's own result" in refusal_of(["merge", output, "-o", own, "--overwrite"], capfd)
    # Another base: one of another vocabulary, and one of another size.
    other = shutil.copytree(tiny_model, tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = vocabulary["model"]["vocab"]
    words["baba"] = words.pop("ba")
    (other / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    line = refusal_of(["predict", output, *text, "--base", str(other)], capfd)
    assert "was trained on a vocabulary of 35 tokens, but model" in line and "--base names" in line
    wider = shutil.copytree(tiny_model, tmp_path / "wider")
    config = transformers.BertConfig.from_pretrained(tiny_model, hidden_size=16)
    transformers.BertModel(config).save_pretrained(wider)
    line = refusal_of(["predict", output, *text, "--base", str(wider)], capfd)
    assert "it was trained on another base model" in line
    # Damaged
    (outcome.folder / "task.json").write_text('{"task": "classification"}', encoding="utf-8")
    assert "task.json cannot be read: options is missing" in refusal_of(["predict", output, *text], capfd)
    (outcome.folder / "task.json").unlink()
    assert "has no task.json" in refusal_of(["predict", output, *text], capfd)
    (Path(output) / "run.json").unlink()
    shutil.rmtree(outcome.folder)
    assert "is not finished" in refusal_of(["predict", output, *text], capfd)


def test_smoothing_is_refused_with_weights(settings: Settings, write: Write) -> None:
    settings["task"] |= {"name": "classification", "class_weights": True}
    settings["training"]["label_smoothing"] = 0.1
    with pytest.raises(SubspaceError, match=r"training\.label_smoothing has no meaning"):
        configs.load(write(settings))


@pytest.mark.slow
def test_weights_of_classes_change_what_is_learnt(run: Run, settings: Settings, tmp_path: Path) -> None:
    rare = [row for n, row in enumerate(ROWS["classification"]) if row["label"] != "Käse" or n < 10]
    data = _source(tmp_path, "csv", rare)
    plain = run("classification", data=data)
    settings["output"] += "-weighted"
    weighted = run("classification", data=data, class_weights=True)
    assert len({*weighted.record["options"]["weights"]}) == 2 and "weights" not in plain.record["options"]
    assert not _same_weights(plain.folder, weighted.folder)


@pytest.mark.parametrize("name", [task.name for task in tasks.every()])
def test_the_papers_values_are_a_config(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Table VI of arXiv 2407.05417."""
    paper = {
        "mnli": (5e-4, 7),
        "rte": (1.2e-3, 50),
        "qnli": (1.2e-3, 5),
        "mrpc": (1e-3, 30),
        "qqp": (5e-4, 5),
        "sst2": (8e-4, 24),
        "cola": (5e-4, 25),
        "stsb": (2.2e-3, 25),
    }
    if name not in paper:
        assert f"no paper gives values for task {name}" in refusal_of(["train", "--preset", name], capfd)
        return
    (tmp_path / "run.yaml").write_text(printed_by(["train", "--preset", name], capfd), encoding="utf-8")
    config = configs.load(tmp_path / "run.yaml")
    assert (config.task.name, config.training.learning_rate, config.training.epochs) == (name, *paper[name])
    assert config.training.batch_size == 32


@pytest.mark.slow
def test_a_pretrained_encoder_learns_own_classes_within_two_minutes(minilm: Path, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    overrides = [f"output={tmp_path / 'run'}", f"task.data={examples / 'data' / 'news.csv'}"]
    outcome = train.run(configs.load(examples / "own_classification.yaml", overrides), progress=False)
    made = use.finished(tmp_path / "run")
    figures, _ = use.evaluate(made, made.task.read(str(examples / "data" / "news_test.csv")), 32)
    assert figures["accuracy"] > outcome.record["baseline_score"] + 0.5
    answers = made.task.rows_of(["The striker scored a late goal."])
    assert np.asarray(use.outputs_of(made, answers, 1).outputs).shape == (1, 5)
    assert outcome.record["seconds"] < 600  # generous: a busy machine is no fault of the run
