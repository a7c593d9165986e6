"""Runs of language models: trained on answers, interrupted, scored, asked and merged; and the example scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import datasets
import peft
import pytest
import torch
import transformers
import trl
from safetensors.torch import load_file

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks.commonsense import Commonsense, first_named
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training import trainer as trainers
from subspace_tuning.training import use
from subspace_tuning.training.merge import merge
from subspace_tuning.training.run import Outcome

from ..scripts import module_of
from ..tasks.decoders import MARKED, write_decoder
from .calls import printed_by, refusal_of
from .test_resume import _interrupt, _same_weights, _wait_for_step

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]
EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = {
    "instruction": EXAMPLES / "data/chats.jsonl",
    "commonsense": EXAMPLES / "data/commonsense.json",
    "maths": EXAMPLES / "data/maths.json",
}
OPTIONS: dict[str, Settings] = {"instruction": {"packing": True}, "commonsense": {}, "maths": {"max_new_tokens": 4}}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny decoder with a chat template."""
    return write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def settings(decoder: Path, tmp_path: Path) -> Settings:
    """A run of four steps; a test names the task."""
    return {
        "model": str(decoder),
        "output": str(tmp_path / "run"),
        "adapter": {"method": "lora", "r": 4},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "eval_batch_size": 4,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            "learning_rate": 0.01,
        },
    }


def of(settings: Settings, kind: str, **options: Any) -> Settings:
    """The settings with a task on its rows."""
    task = {"name": kind, "data": str(ROWS[kind]), "max_length": 512, **OPTIONS[kind], **options}
    return {**settings, "task": task}


class Trained(NamedTuple):
    """A finished run."""

    kind: str
    outcome: Outcome
    folder: str


@pytest.fixture(scope="module", params=ROWS)
def trained(request: pytest.FixtureRequest, decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of two steps for each kind of task, scored on all rows."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    words = [f"model={decoder}", f"output={folder / 'run'}", "adapter.method=ssb", "training.max_steps=2"]
    words += ["training.device=cpu", "training.threads=1", "training.precision=float32", "training.batch_size=4"]
    words += [f"task.name={kind}", f"task.data={ROWS[kind]}", f"task.validation={ROWS[kind]}", "task.max_length=512"]
    words += [f"task.{name}={value}" for name, value in OPTIONS[kind].items()]
    return Trained(kind, train.run(configs.load(None, words), progress=False), str(folder / "run"))


def test_a_run_goes_through_trls_trainer(settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fit = train._fit
    monkeypatch.setattr(train, "_fit", lambda trainer, *given: (seen.append(trainer), fit(trainer, *given))[1])
    settings["training"]["max_steps"] = 1
    train.run(configs.load(write(of(settings, "instruction"))), progress=False)
    [trainer] = seen
    assert isinstance(trainer, trl.SFTTrainer) and isinstance(trainer, trainers.SeededTrainer)
    assert isinstance(trainer.args, trl.SFTConfig) and trainer.model_accepts_loss_kwargs


def test_a_run_is_scored_with_its_own_figures(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record, file = trained.outcome.record, tmp_path / "figures.json"
    words = ["evaluate", trained.folder, "--data", str(ROWS[trained.kind]), "--batch-size", "3", "-o", str(file)]
    printed = printed_by(words, capfd)
    figures = json.loads(file.read_text(encoding="utf-8"))
    own = {name: figure for name, figure in record["final"].items() if name not in ("epoch", "step")}
    ends = {f"{record['metric']}_{end}" for end in ("low", "high")}
    assert own.keys() == record["baseline"].keys() | ends
    for name, figure in own.items():
        assert figures[name] == pytest.approx(figure, rel=1e-4) and name in printed
    metric = "loss" if trained.kind == "instruction" else "accuracy"
    low, high = record["score_interval"]
    assert low == own[f"{metric}_low"] <= own[metric] == record["score"] <= own[f"{metric}_high"] == high
    assert record["parameters"]["head"] == 0


def test_a_run_answers(trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "asked.jsonl"
    column = "prompt" if trained.kind == "instruction" else "instruction"
    question = "Is it?\n\nAnswer format: true/false"
    asked.write_text("".join(json.dumps({column: question}) + "\n" for _ in range(3)), encoding="utf-8")
    file = tmp_path / "answers.jsonl"
    assert "3 rows" in printed_by(["predict", trained.folder, "--file", str(asked), "-o", str(file)], capfd)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [question] * 3
    assert all("predicted" in line for line in lines)
    if trained.kind == "commonsense":
        assert {*lines[0]["probabilities"]} == {"true", "false"}
        assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)
    assert "predicted" in printed_by(["predict", trained.folder, "--text", question], capfd)


def test_a_merged_run_stands_alone(trained: Trained, tmp_path: Path) -> None:
    made = use.finished(trained.folder)
    rows = made.task.read(str(ROWS[trained.kind])).first(8)
    figures, _ = use.evaluate(made, rows, 4)
    assert merge(made, tmp_path / "merged").difference < 1e-3
    again = use.finished(tmp_path / "merged")
    assert use.evaluate(again, rows, 4)[0][made.task.primary] == pytest.approx(figures[made.task.primary], rel=1e-3)
    assert again.processor.chat_template and 2 in again.model.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("instruction", {"method": "lora", "r": 4, "pattern": "orthogonal", "pattern_weight": 0.1}),
        pytest.param("instruction", {"method": "adalora", "r": 4}, marks=pytest.mark.slow),
        pytest.param("commonsense", {"method": "ssb"}, marks=pytest.mark.slow),
        pytest.param("maths", {"method": "dora", "r": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_it_stopped(
    kind: str, method: Settings, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of(settings | {"adapter": method}, kind)
    settings["training"] |= {"max_steps": 7, "batch_size": 1, "save_steps": 2, "gradient_accumulation": 2}
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    config = configs.load(write(settings))
    _interrupt(config, 5, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] is not None
    assert parted.record["history"] == whole.record["history"]
    assert _same_weights(parted.folder, whole.folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_a_killed_process_loses_nothing(settings: Settings, write: Write) -> None:
    settings = of(settings, "instruction")
    settings["training"] |= {"max_steps": 60, "save_steps": 2}
    config, output = write(settings), Path(settings["output"])
    command = [sys.executable, "-c", "from subspace_cli import main; main()", "train", str(config), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_step(output, 10, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "run.json").exists()
    parted = train.run(configs.load(config), progress=False)
    assert parted.record["resumed_from_step"] >= 10
    whole = train.run(configs.load(config, [f"output={output}-whole"]), progress=False)
    assert parted.record["history"] == whole.record["history"]
    assert _same_weights(parted.folder, whole.folder)


def test_the_best_epoch_is_that_of_the_smallest_loss(settings: Settings, write: Write) -> None:
    settings["training"] |= {"max_steps": 9, "batch_size": 2, "learning_rate": 0.3, "keep": "best"}
    outcome = train.run(configs.load(write(of(settings, "instruction"))), progress=False)
    losses = [entry["loss"] for entry in outcome.record["history"]]
    assert outcome.record["score"] == min(losses) < max(losses)
    made = use.finished(outcome.folder)
    kept = made.task.prepare(str(ROWS["instruction"]))[1]["validation"]
    assert use.evaluate(made, kept, 4)[0]["loss"] == pytest.approx(min(losses), rel=1e-4)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def test_a_step_counts_every_token_alike(settings: Settings, write: Write) -> None:
    """Batches that are accumulated have different numbers of answers' tokens; together they are one batch."""
    settings["training"] |= {"max_steps": 2, "group_by_length": False}
    found = []
    for batch, accumulated in ((4, 1), (1, 4)):
        settings["training"] |= {"batch_size": batch, "gradient_accumulation": accumulated}
        config = of({**settings, "output": f"{settings['output']}-{batch}"}, "instruction", packing=False)
        found.append(_weights(train.run(configs.load(write(config)), progress=False).folder))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-4), name


def test_a_penalty_acts(settings: Settings, write: Write) -> None:
    found = []
    for weight in (0.0, 0.5):
        adapter = {"method": "lora", "r": 4, "pattern": "orthogonal", "pattern_weight": weight}
        config = of({**settings, "output": f"{settings['output']}-{weight}", "adapter": adapter}, "instruction")
        outcome = train.run(configs.load(write(config)), progress=False)
        found.append(sum(one["A"] for one in outcome.record["orthogonality"].values()))
    assert found[1] < found[0] - 1e-3


@pytest.mark.parametrize("method", ["fish_dip", pytest.param("fishmask", marks=pytest.mark.slow)])
def test_what_is_chosen_from_data_is_chosen_from_packed_rows(method: str, settings: Settings, write: Write) -> None:
    settings["adapter"] = {"method": method, "budget": 0.01}
    if method == "fish_dip":
        settings["adapter"]["schedule"] = {"interval": 1, "t_final": 1}
    record = train.run(configs.load(write(of(settings, "instruction"))), progress=False).record
    assert record["steps"] == 4


def test_what_trains_on_quantised_weights_stays_in_float32(settings: Settings, write: Write) -> None:
    pytest.importorskip("bitsandbytes")
    settings |= {"quantise": "nf4"}
    settings["training"]["max_steps"] = 1
    outcome = train.run(configs.load(write(of(settings, "instruction", packing=False))), progress=False)
    assert {tensor.dtype for tensor in _weights(outcome.folder).values()} == {torch.float32}


def test_a_killed_scoring_goes_on(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, file = use.finished(trained.folder), tmp_path / "figures.json"
    rows = made.task.read(str(ROWS[trained.kind])).first(12)
    whole, _ = use.evaluate(made, rows, 2)
    task, calls = type(made.task), []
    generate = task.generate

    def stop(self: Any, model: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, model, batch)

    monkeypatch.setattr(task, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        use.evaluate(made, rows, 2, file)
    assert len(list(tmp_path.glob("*.part/*/*.json"))) == 3
    calls.append(None)
    figures, _ = use.evaluate(made, rows, 2, file)
    assert figures == whole and len(calls) == 4 + 1 + 3
    assert not list(tmp_path.glob("*.part"))


# What cannot be used


@pytest.mark.parametrize(
    ("template", "row", "told"),
    [
        (None, {}, "the model's tokenizer has no chat template: set task.template"),
        (MARKED, {"messages": [{"role": "user", "content": "a"}]}, "line 2: the last message is of role 'user'"),
        (
            MARKED,
            {"messages": [{"role": "user", "content": "a" * 600}, {"role": "assistant", "content": "b"}]},
            "line 2",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_made(
    template: str | None,
    row: Settings,
    told: str,
    settings: Settings,
    write: Write,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    good = {"prompt": "a", "answer": "b"} if "prompt" in row else good
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(one) + "\n" for one in (good, row or good, good)), encoding="utf-8")
    model = write_decoder(tmp_path / "model", template)
    config = of({**settings, "model": str(model)}, "instruction", data=str(rows), validation=str(ROWS["instruction"]))
    assert told in refusal_of(["train", str(write(config))], capfd)
    assert not Path(settings["output"]).exists()


def test_a_language_model_has_no_head_to_train(settings: Settings, write: Write) -> None:
    settings["adapter"] = {"method": "head"}
    with pytest.raises(SubspaceError, match="matches no module with weights"):
        train.run(configs.load(write(of(settings, "instruction"))), progress=False)


def test_the_model_has_room_for_what_it_writes(settings: Settings, write: Write) -> None:
    config = of(settings, "maths", max_new_tokens=2000)
    with pytest.raises(SubspaceError, match="the model has 2048 positions for both"):
        train.run(configs.load(write(config)), progress=False)


# Published rows

DATA = "SUBSPACE_REASONING"
PUBLISHED = {
    "boolq": ("commonsense", "test.json", 3270),
    "ARC-Easy": ("commonsense", "test.json", 2376),
    "ARC-Challenge": ("commonsense", "test.json", 1172),
    "openbookqa": ("commonsense", "test.json", 500),
    "AddSub": ("maths", "test.json", 395),
    "MultiArith": ("maths", "test.json", 600),
    "SVAMP": ("maths", "test.json", 1000),
    "SingleEq": ("maths", "test.json", 508),
    "gsm8k_openai": ("maths", "test.jsonl", 1319),
}


@pytest.mark.skipif(DATA not in os.environ, reason=f"set {DATA} to a folder with the data sets of LLM-Adapters")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_are_read_and_scored(name: str) -> None:
    kind, file, count = PUBLISHED[name]
    source = str(Path(os.environ[DATA]) / name / file)
    task, found = tasks.get(kind).configured({"validation": source}).prepare(source)
    rows = found["train"]
    assert len(rows) == count
    if kind == "maths":
        assert task.score(rows.known, rows.known)["accuracy"] == 1
        return
    assert isinstance(task, Commonsense) and task.stem == "the correct answer is "
    said = [chat[-1]["content"] for chat in rows.chats]
    named = [first_named(text, names) for text, names in zip(said, rows.choices, strict=True)]
    assert named == [names[number] for names, number in zip(rows.choices, rows.known, strict=True)]


# Examples


@pytest.mark.parametrize("name", ["instruction", "commonsense", "maths"])
def test_an_example_runs_as_written(
    name: str, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model, for one step."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    words = [f"model={decoder}", "training.max_steps=1", "training.device=cpu", "task.max_length=512", "--quiet"]
    words += ["task.max_new_tokens=4"] if name == "maths" else []
    assert "saved in" in printed_by(["train", f"examples/{name}.yaml", *words], capfd)
    assert tasks.get(name).name == name


def script(name: str) -> ModuleType:
    """An example script as a module."""
    return module_of(EXAMPLES / f"{name}.py")


def test_preferences_are_learnt(decoder: Path, tmp_path: Path) -> None:
    """The reference is the model without its adapter, so the first loss is that of a coin: ln 2."""
    rows = datasets.load_dataset("json", data_files=str(EXAMPLES / "data/preferences.jsonl"), split="train")
    trainer = script("dpo").train(str(decoder), rows, str(tmp_path / "dpo"), 6)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < losses[0] - 0.01
    assert any("penalty" in entry for entry in trainer.state.log_history)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "dpo")
    assert loaded.peft_config["default"].method == "lora"
    with loaded.disable_adapter():
        base = transformers.AutoModelForCausalLM.from_pretrained(decoder)
        ids = torch.tensor([[4, 5, 6]])
        assert torch.allclose(loaded(ids).logits, base(ids).logits, atol=1e-5)
