"""Runs on own images: trained, interrupted, evaluated, asked, merged and counted by the commands of every task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from subspace_cli import main
from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training import use
from subspace_tuning.training.merge import merge
from subspace_tuning.training.run import Outcome
from subspace_tuning.training.sampler import EpochSampler, VariedRows

from ..tasks.images import SIZE, digits, write_folder
from .calls import printed_by
from .test_resume import _interrupt, _same_weights

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ViT of two layers with its image processor, and with dropout."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=SIZE,
        patch_size=4,
        hidden_dropout_prob=0.1,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits by split and class."""
    folder = tmp_path_factory.mktemp("digits")
    write_folder(folder / "train", range(48))
    write_folder(folder / "validation", range(48, 70))
    return folder


def _settings(model: Path, images: Path, output: Path) -> Settings:
    return {
        "model": str(model),
        "output": str(output),
        "task": {"name": "image_classification", "data": str(images)},
        "adapter": {"method": "lora"},
        "training": {
            "max_steps": 9,
            "batch_size": 16,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            "learning_rate": 0.01,
        },
    }


@pytest.fixture
def settings(tiny_vit: Path, images: Path, tmp_path: Path) -> Settings:
    """A run of three epochs of three steps."""
    return _settings(tiny_vit, images, tmp_path / "run")


class Trained(NamedTuple):
    """A finished run, and the folder of its images."""

    outcome: Outcome
    folder: str
    images: Path


@pytest.fixture(scope="module")
def trained(tiny_vit: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.json").write_text(json.dumps(_settings(tiny_vit, images, folder / "run")), encoding="utf-8")
    (folder / "config.json").rename(folder / "config.yaml")  # JSON is YAML
    outcome = train.run(configs.load(folder / "config.yaml"), progress=False)
    return Trained(outcome, str(folder / "run"), images)


def test_a_run_is_evaluated_with_its_own_figures(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = trained.outcome.record
    assert record["options"]["classes"] == [f"digit {number}" for number in range(10)]
    assert record["data"]["validation"]["rows"] == 22 and record["cut"] == {"train": 0, "validation": 0}
    file = tmp_path / "figures.json"
    printed_by(["evaluate", trained.folder, "--data", str(trained.images), "--batch-size", "5", "-o", str(file)], capfd)
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["rows"] == 22
    for name in ("accuracy", "f1_macro"):
        assert figures[name] == pytest.approx(record["final"][name], abs=1e-6)


def test_new_tokens_are_for_texts(settings: Settings, write: Write) -> None:
    settings["adapter"]["new_tokens"] = ["<a>"]
    with pytest.raises(SubspaceError, match=r"adapter\.new_tokens has no meaning for a model without a tokenizer"):
        train.run(configs.load(write(settings)), progress=False)


def test_a_run_says_what_it_thinks_of_new_images(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for row in range(5):
        (tmp_path / f"{row}.png").write_bytes(digits()[0][row])
    file = tmp_path / "answers.jsonl"
    assert "1 rows" in printed_by(
        ["predict", trained.folder, "--file", str(tmp_path / "3.png"), "-o", str(file)], capfd
    )
    [alone] = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    file.unlink()
    printed = printed_by(["predict", trained.folder, "--file", str(tmp_path)], capfd)
    assert "predicted" in printed and "digit" in printed
    table = tmp_path.parent / f"{tmp_path.name}.jsonl"
    printed_by(["predict", trained.folder, "--file", str(tmp_path), "-o", str(table)], capfd)
    lines = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == [str(tmp_path / f"{row}.png") for row in range(5)]
    assert lines[3]["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-5)
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1.0)
    with pytest.raises(SystemExit) as ended:
        main(["predict", trained.folder, "--text", "a cat"])
    assert ended.value.code == 2
    assert "a row of task image_classification is not one text" in capfd.readouterr().err


def test_a_merged_run_stands_alone(trained: Trained, tmp_path: Path) -> None:
    made = use.finished(trained.folder)
    rows = made.task.read(str(trained.images))
    before = use.outputs_of(made, rows, 32).outputs
    told = merge(made, tmp_path / "merged")
    assert told.difference < 1e-4 * max(1.0, told.largest)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "merged")
    assert model.config.id2label[3] == "digit 3"
    batch = made.task.collator(processor)(list(made.task.encode(rows, processor, 128)))
    with torch.no_grad():
        assert model(batch["pixel_values"]).logits.numpy() == pytest.approx(before, rel=1e-3, abs=1e-3)
    card = Path(trained.outcome.folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in card and "--file IMAGES" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", repr(str(trained.outcome.folder)))
    world: dict[str, Any] = {}
    exec(code, world)
    with torch.no_grad():
        assert world["model"].eval()(batch["pixel_values"]).logits.numpy() == pytest.approx(before, rel=1e-3, abs=1e-3)


def test_what_a_method_trains_is_counted(trained: Trained, tiny_vit: Path, capfd: pytest.CaptureFixture[str]) -> None:
    printed = printed_by(["params", str(tiny_vit), "-m", "lora", "-r", "8"], capfd)
    assert f"{trained.outcome.record['parameters']['adapter']:,}" in printed


@pytest.mark.parametrize("step", [pytest.param(step, marks=pytest.mark.slow) for step in (2, 5)] + [8])
def test_a_run_goes_on_where_it_stopped(
    step: int, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["task"] |= {"augment": ["crop", "flip"], "class_weights": True}
    settings["training"] |= {"save_steps": 2, "log_steps": 1}
    config = configs.load(write(settings))
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    _interrupt(config, step, monkeypatch)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] is not None
    assert parted.record["history"] == whole.record["history"]
    assert _same_weights(parted.folder, whole.folder)


def test_images_vary_by_row_and_epoch_and_seed(images: Path) -> None:
    task, rows = tasks.get("image_classification").configured({"augment": ["crop"]}).prepare(str(images))
    encoded = task.encode(rows["train"], None, 128)
    assert "seed" not in encoded.column_names  # rows to be scored do not vary

    def seeds(seed: int, epoch: int) -> list[int]:
        order = EpochSampler(task.lengths(encoded), None, seed)
        order.set_epoch(epoch)
        assert task.varied is not None
        return [VariedRows(encoded, task.varied, order)[row]["seed"] for row in range(len(encoded))]

    every = [*seeds(0, 0), *seeds(0, 1), *seeds(1, 0)]
    assert len({*every}) == len(every) == 3 * 48
    assert seeds(0, 1) == seeds(0, 1)


def test_an_image_lost_meanwhile_ends_the_run_before_it_starts(
    settings: Settings, images: Path, write: Write, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "spoilt")
    file = sorted((tmp_path / "spoilt" / "train").glob("*/*"))[0]
    file.write_bytes(file.read_bytes()[:60])
    settings["task"]["data"] = str(tmp_path / "spoilt")
    with pytest.raises(SubspaceError, match=file.name):
        train.run(configs.load(write(settings)), progress=False)
    assert not Path(settings["output"]).exists()


@pytest.mark.parametrize(
    "method", ["ssb", "full", *(pytest.param(one, marks=pytest.mark.slow) for one in ("head", "fishmask"))]
)
def test_methods_of_every_kind_train_on_images(method: str, settings: Settings, write: Write) -> None:
    settings["adapter"]["method"] = method
    settings["training"]["max_steps"] = 2
    outcome = train.run(configs.load(write(settings)), progress=False)
    assert use.outputs_of(
        use.finished(outcome.folder),
        tasks.get("image_classification").configured(outcome.record["options"]).read(settings["task"]["data"]),
        32,
    ).outputs.shape == (22, 10)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "mam"])
def test_methods_for_texts_are_refused_in_a_line(method: str, settings: Settings, write: Write) -> None:
    settings["adapter"]["method"] = method
    with pytest.raises(
        SubspaceError, match=rf"^method '{method}' adds tokens to texts, which this model does not read"
    ):
        train.run(configs.load(write(settings)), progress=False)


@pytest.mark.slow
def test_digits_are_learnt(settings: Settings, write: Write, tmp_path: Path) -> None:
    settings["task"]["data"] = str(write_folder(tmp_path / "all", range(1200)))
    settings["adapter"] = {"method": "full"}
    settings["training"] |= {"max_steps": None, "epochs": 12, "learning_rate": 0.003}
    record = train.run(configs.load(write(settings)), progress=False).record
    assert record["score"] > 0.8 > record["baseline_score"] + 0.5
