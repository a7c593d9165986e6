"""Runs whose answers are texts: trained, interrupted, evaluated, asked and merged."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
import yaml

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.models.load import load
from subspace_tuning.tasks.decoding import Decoding, generate, left_padded, texts_of
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training import use
from subspace_tuning.training.folder import RunFolder
from subspace_tuning.training.merge import merge
from subspace_tuning.training.run import Outcome

from ..tasks.own_files import TEXT_ROWS, write
from .calls import printed_by, refusal_of
from .language import END, MODELS, PAD, llama
from .test_resume import _interrupt, _same_weights, _wait_for_step

EXAMPLES = Path(__file__).parents[2] / "examples"
NLG = Path(__file__).parents[2].parent / "shared" / "data" / "nlg"
KINDS = {"question_answering": "bert", "generation of an encoder-decoder": "t5", "generation of a decoder": "llama"}
Folders = Mapping[str, Path]


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folders of tiny models by their kind."""
    return {"bert": tiny_model, **{kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MODELS.items()}}


def _settings(kind: str, folders: Folders, folder: Path, **training: Any) -> dict[str, Any]:
    """A run of four steps on the rows of a kind."""
    task = kind.split()[0]
    own = {"max_length": 12, "stride": 2} if task == "question_answering" else {"max_length": 16, "max_new_tokens": 5}
    source = folder / "rows.jsonl"
    data = str(source) if source.exists() else write(folder, "jsonl", TEXT_ROWS[task])
    return {
        "model": str(folders[KINDS[kind]]),
        "output": str(folder / "run"),
        "task": {"name": task, "data": data, **own},
        "adapter": {"method": "lora"},
        "training": {
            "learning_rate": 0.01,
            "max_steps": 4,
            "batch_size": 8,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            **training,
        },
    }


def _config(settings: Mapping[str, Any], *overrides: str) -> Any:
    file = Path(settings["output"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return configs.load(file, overrides)


class Trained(NamedTuple):
    """A finished run, and the file of its validation rows."""

    kind: str
    outcome: Outcome
    folder: str
    validation: str


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of four steps for each kind."""
    kind, folder = request.param, tmp_path_factory.mktemp("run")
    validation = write(folder, "csv", TEXT_ROWS[kind.split()[0]][:13], "other")
    settings = _settings(kind, folders, folder)
    settings["task"]["validation"] = validation
    return Trained(kind, train.run(_config(settings), progress=False), settings["output"], validation)


def test_a_run_is_evaluated_with_its_own_figures(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record, file = trained.outcome.record, tmp_path / "figures.json"
    own = {name: figure for name, figure in record["final"].items() if name not in ("epoch", "step", "loss")}
    words = ["evaluate", trained.folder, "--data", trained.validation, "--batch-size", "3", "-o", str(file)]
    printed = printed_by(words, capfd)
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert len(own) > 1 and figures["rows"] == record["data"]["validation"]["rows"] > 5
    for name, figure in own.items():
        assert figures[name] == pytest.approx(figure, abs=1e-6) and name in printed
    low, high = (own.pop(f"{record['metric']}_{end}") for end in ("low", "high"))
    assert [low, high] == record["score_interval"] and low <= record["score"] <= high
    assert record["baseline"].keys() == own.keys()


def test_a_run_answers_new_rows(trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kind = trained.kind.split()[0]
    columns = ("context", "question") if kind == "question_answering" else ("input",)
    rows = [{name: row[name] for name in columns} for row in TEXT_ROWS[kind][:11]]
    asked = write(tmp_path, "jsonl", rows, "asked")
    for form in ("jsonl", "csv"):
        words = ["predict", trained.folder, "--file", asked, "-o", str(tmp_path / f"answers.{form}")]
        assert "11 rows" in printed_by(words, capfd)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line[columns[-1]] for line in lines] == [row[columns[-1]] for row in rows]
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        assert [cells["predicted"] for cells in csv.DictReader(file)] == [line["predicted"] for line in lines]
    if kind == "question_answering":
        assert all(line["predicted"] in row["context"] for line, row in zip(lines, rows, strict=True))
    else:
        assert len({line["predicted"] for line in lines}) > 1
    printed = printed_by(["predict", trained.folder, "--file", asked], capfd)
    assert len(printed.splitlines()) == 12 and "predicted" in printed and "n_best" not in printed


def test_a_merged_run_stands_alone(trained: Trained, tmp_path: Path) -> None:
    made = use.finished(trained.folder)
    figures, _ = use.evaluate(made, made.task.read(trained.validation), 4)
    told = merge(made, tmp_path / "merged")
    assert told.difference < 1e-4 * max(1.0, told.largest)
    transformers_own = made.task.model_class.from_pretrained(tmp_path / "merged")
    assert not any("subspace" in name for name, _ in transformers_own.named_parameters())
    again = use.finished(tmp_path / "merged")
    found, _ = use.evaluate(again, again.task.read(trained.validation), 4)
    assert found == pytest.approx(figures, abs=1e-6)


def test_the_head_is_trained_where_it_is_fresh(trained: Trained) -> None:
    head = trained.outcome.record["parameters"]["head"]
    assert head == (2 * 32 + 2 if trained.kind == "question_answering" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_it_stopped(
    kind: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(kind, folders, tmp_path, max_steps=9, save_steps=2)
    whole = train.run(_config({**settings, "output": f"{tmp_path}/whole"}), progress=False)
    config = _config(settings)
    _interrupt(config, 5, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] == 4
    assert parted.record["history"] == whole.record["history"] and len(whole.record["history"]) > 1
    assert _same_weights(parted.folder, whole.folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_loses_nothing(kind: str, folders: Folders, tmp_path: Path) -> None:
    settings = _settings(kind, folders, tmp_path, max_steps=40, save_steps=2)
    _config(settings)
    output, file = Path(settings["output"]), f"{settings['output']}.yaml"
    command = [sys.executable, "-c", "from subspace_cli import main; main()", "train", file, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy())
    _wait_for_step(output, 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "run.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    parted = RunFolder(output).record()
    assert parted is not None and parted["resumed_from_step"] >= 6
    whole = train.run(_config({**settings, "output": f"{tmp_path}/whole"}), progress=False)
    assert parted["history"] == whole.record["history"]
    assert _same_weights(output / parted["result"], whole.folder)


# Generation


def _ready(kind: str, folders: Folders, **options: Any) -> tuple[Any, Any, Any]:
    """A task for a tiny model, the model and its tokenizer."""
    settings = {"max_new_tokens": 6, **options}
    task: Any = tasks.get("generation").configured(settings)
    task = task.for_model(transformers.AutoConfig.from_pretrained(folders[kind]))
    model, tokenizer = load(str(folders[kind]), task.model_class, {}, 16)
    return task, model.eval(), tokenizer


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_is_written_as_its_rows_alone(kind: str, beams: int, folders: Folders, tmp_path: Path) -> None:
    """Also where labels stand behind the prompts, which no answer may look at."""
    task, model, tokenizer = _ready(kind, folders, num_beams=beams)
    source = write(tmp_path, "jsonl", TEXT_ROWS["generation"])
    made = use.Finished(task, model, tokenizer, 16, "", tmp_path)
    texts = {
        (size, labelled): [
            answer["predicted"] for answer in task.answers(use.outputs_of(made, task.read(source).first(9), size))
        ]
        for size in (1, 4, 9)
        for labelled in (True, False)
    }
    assert all(found == texts[1, False] for found in texts.values())
    assert len(set(texts[1, False])) > 3 and any(" " in text for text in texts[1, False])


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_of_the_output_alone(kind: str, folders: Folders, tmp_path: Path) -> None:
    task, model, tokenizer = _ready(kind, folders)
    rows = task.read(write(tmp_path, "jsonl", TEXT_ROWS["generation"])).first(5)
    [batch] = task.batches(rows, tokenizer, 16, 5)
    loss, outputs = task.loss(model, batch)
    lengths = sorted(len(wanted[0].split()) + 1 for wanted in rows.known)
    assert sorted((batch["labels"] != -100).sum(dim=1).tolist()) == lengths
    logits, labels = outputs["logits"], batch["labels"]
    if kind == "llama":
        assert torch.equal(labels[labels != -100], batch["input_ids"][labels != -100])
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert float(loss.detach()) == pytest.approx(float(each.detach().sum()) / sum(lengths), rel=1e-5)


def test_texts_end_with_the_tokenizers_token(folders: Folders) -> None:
    """Whatever token the model's own configuration has."""
    _, model, tokenizer = _ready("llama", folders)
    assert model.config.eos_token_id == 1
    prompts = [torch.tensor([2, 5]), torch.tensor([2, 6, 7, 8])]
    batch = left_padded(prompts, tokenizer.pad_token_id)
    assert batch["input_ids"].tolist() == [[0, 0, 2, 5], [2, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    with torch.no_grad():
        model.lm_head.weight[3] = 0.0
        model.lm_head.weight[3] += 100 * model.model(**batch).last_hidden_state[1, -1]
    found = generate(model, batch, Decoding(4), decoder=True)
    assert found[1].tolist() == [3] + [0] * (found.shape[1] - 1)
    assert texts_of(found.numpy(), tokenizer)[1] == ""


def test_inputs_of_several_outputs_are_scored_together(tmp_path: Path) -> None:
    task, rows = tasks.get("generation").prepare(write(tmp_path, "jsonl", TEXT_ROWS["generation"]), eval_rows=3)
    train, validation = rows["train"], rows["validation"]
    assert len(validation) == 3 and all(len(outputs) == 1 for outputs in train.known)
    assert not set(train.inputs) & set(validation.inputs)
    both = [{"input": "ba", "output": ["de fi", "go lu"]}, {"input": "ne", "output": "bak"}]
    read = task.read(write(tmp_path, "jsonl", both, "both"))
    assert read.known == (("de fi", "go lu"), ("bak",))
    for text in read.known[0]:
        assert task.score([text, "bak"], read.known)["exact_match"] == 1.0
        assert task.score([text, "bak"], read.known)["rouge1"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_cut_is_the_input_and_never_the_prompt(kind: str, folders: Folders) -> None:
    task, _, tokenizer = _ready(kind, folders, prompt="bak {input} gok")
    rows = task.rows_of(["ba", "ba de fi go lu ne"])
    encoded = task.encode(rows, tokenizer, 6)
    texts = [tokenizer.decode(tokens) for tokens in encoded["input_ids"]]
    wanted = {"t5": "bak {} gok </s>", "llama": "<s> bak {} gok"}[kind]
    assert texts == [wanted.format("ba"), wanted.format("ba de fi")]
    assert task.cut(rows, encoded, tokenizer, 6) == 1
    labelled = dataclasses.replace(rows, outputs=(("de " * 9,), ("fi",)))
    assert task.cut(labelled, task.encode(labelled, tokenizer, 12), tokenizer, 12) == 1
    with pytest.raises(SubspaceError, match=r"task\.max_length is 1, and the prompt has . tokens after the input"):
        task.encode(rows, tokenizer, 1)


def test_generate_writes_as_it_is_told(folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = _settings("generation of a decoder", folders, tmp_path)
    train.run(_config(settings), progress=False)
    asked = write(tmp_path, "jsonl", [{"input": row["input"]} for row in TEXT_ROWS["generation"][:9]], "asked")

    def written(command: str, *options: str) -> list[str]:
        file = tmp_path / "answers.jsonl"
        printed_by([command, settings["output"], "--file", asked, "-o", str(file), *options], capfd)
        return [json.loads(line)["predicted"] for line in file.read_text(encoding="utf-8").splitlines()]

    plain = written("generate")
    assert plain == written("predict") == written("generate", "--batch-size", "2")
    drawn = written("generate", "--temperature", "2", "--top-p", "0.9", "--seed", "1")
    assert drawn == written("generate", "--temperature", "2", "--top-p", "0.9", "--seed", "1") != plain
    assert drawn != written("generate", "--temperature", "2", "--top-p", "0.9", "--seed", "2")
    assert max(len(text.split()) for text in written("generate", "--max-new-tokens", "1")) <= 1
    assert len(written("generate", "--beams", "3")) == 9
    assert "predicted" in printed_by(["generate", settings["output"], "--text", "ba de", "-t", "fi"], capfd)
    output = settings["output"]
    line = refusal_of(["generate", output, "-t", "ba", "--max-new-tokens", "60"], capfd)
    assert "task.max_length is 16 and task.max_new_tokens 60: they need 76 positions, and the model has 64" in line
    assert "task.top_p is 0.0: it must be above 0" in refusal_of(
        ["generate", output, "-t", "ba", "--top-p", "0"], capfd
    )


# Bad input


def test_a_run_that_writes_no_texts_is_told(
    folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = _settings("question_answering", folders, tmp_path)
    train.run(_config(settings), progress=False)
    line = refusal_of(["generate", settings["output"], "--file", settings["task"]["data"]], capfd)
    assert "is of task question_answering, which does not generate text: use `subspace predict`" in line
    assert "a row of task question_answering is not one text" in refusal_of(
        ["predict", settings["output"], "-t", "ba"], capfd
    )


REFUSED = {
    "an encoder": ("bert", {}, "task generation needs a model that generates text, and a bert does not"),
    "positions": ("llama", {"max_new_tokens": 50}, "they need 66 positions, and the model has 64"),
    "no place in the prompt": ("llama", {"prompt": "ba"}, "task.prompt is 'ba': write {input} exactly once"),
    "no tokens": ("t5", {"max_new_tokens": 0}, "task.max_new_tokens is 0: it must be at least 1"),
    "no beams": ("t5", {"num_beams": 0}, "task.num_beams is 0: it must be at least 1"),
    "no such column": ("t5", {"label": "outputs"}, "no column 'outputs', did you mean output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_generated_is_told_before_training(
    case: str, folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, options, told = REFUSED[case]
    settings = _settings("generation of a decoder", folders, tmp_path)
    settings["task"] |= options
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**settings, "model": str(folders[kind])}), encoding="utf-8")
    assert told in refusal_of(["train", str(file)], capfd)
    assert not Path(settings["output"]).exists()


BAD_ROWS = {
    "no output": (
        '{"input": "ba", "output": "de"}\n{"input": "de", "output": " "}\n',
        "line 2: column 'output' has no text",
    ),
    "no input": ('{"output": "de"}\n', "has no column 'input', did you mean output"),
    "an empty list": ('{"input": "ba", "output": []}\n', "line 1: column 'output' has no text; write one"),
    "a number": ('{"input": "ba", "output": 7}\n', "line 1: column 'output' is 7, which is not a text"),
    "nothing": ("\n", "rows.jsonl has no rows"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_told_with_their_place(case: str, tmp_path: Path) -> None:
    content, told = BAD_ROWS[case]
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(SubspaceError, match=told) as caught:
        tasks.get("generation").prepare(str(tmp_path / "rows.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_pad_token_is_told(
    folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, special in {"without": {"eos_token": END}, "bare": {}, "endless": {"pad_token": PAD}}.items():
        llama(tmp_path / name, special)
    settings = _settings("generation of a decoder", folders, tmp_path)
    record = train.run(_config(settings, f"model={tmp_path / 'without'}"), progress=False).record
    assert "has no pad token: </s> is used instead" in caplog.text
    whole = train.run(_config(settings, f"output={tmp_path / 'other'}"), progress=False).record
    assert record["history"] == whole["history"]
    refused = {"bare": "has neither a pad token nor an eos token", "endless": "has no eos token"}
    for name, told in refused.items():
        with pytest.raises(SubspaceError, match=told):
            train.run(_config(settings, f"model={tmp_path / name}", f"output={tmp_path / 'none'}"), progress=False)
    assert not (tmp_path / "none").exists()


# What is learnt


@pytest.mark.parametrize("kind", MODELS)
def test_a_tiny_model_learns_to_copy(kind: str, folders: Folders, tmp_path: Path) -> None:
    settings = _settings(f"generation of {'an encoder-decoder' if kind == 't5' else 'a decoder'}", folders, tmp_path)
    rows = [{"input": word, "output": word} for word in ("ba", "de", "fi", "go")]
    settings["task"] |= {"data": write(tmp_path, "jsonl", rows * 16, "copies")}
    settings["task"] |= {"validation": write(tmp_path, "jsonl", rows, "asked")}
    settings["adapter"] = {"method": "full"}
    settings["training"] |= {"max_steps": 96}
    record = train.run(_config(settings), progress=False).record
    assert record["final"]["exact_match"] == 1.0 > record["baseline"]["exact_match"]


@pytest.mark.parametrize("name", ["own_question_answering", "own_generation"])
def test_the_examples_start(name: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    model = f"model={folders['t5' if 'generation' in name else 'bert']}"
    few = ["training.max_steps=1", "training.batch_size=2", "task.train_rows=8", "task.eval_rows=4"]
    length = [] if "generation" in name else ["task.max_length=40"]  # the tiny model's positions
    config = configs.load(EXAMPLES / f"{name}.yaml", [model, f"output={tmp_path / 'run'}", *few, *length])
    record = train.run(config, progress=False).record
    assert record["steps"] == 1 and record["task"] == name.removeprefix("own_")
    assert np.isfinite(record["score"])


@pytest.mark.slow
def test_a_pretrained_encoder_learns_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    record = train.run(
        configs.load(EXAMPLES / "own_question_answering.yaml", [f"output={tmp_path / 'run'}"]), progress=False
    ).record
    assert record["score"] > record["baseline_score"] + 0.3


@pytest.mark.skipif(not NLG.is_dir(), reason="the data sets beside the project are not there")
def test_published_texts_are_grouped_by_their_inputs() -> None:
    task: Any = tasks.get("generation").configured({"text": "mr", "label": "ref"})
    rows = task.read(str(NLG / "devset.csv"))
    assert sum(map(len, rows.known)) == 4672 and len(rows) == 547
