"""A task that nothing but its own file knows trains, is scored and resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.trainer import SeededTrainer

from . import counting

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings["task"] = {"name": "Counting-Words", "data": "texts of seed 0", "max_length": 16}
    settings["adapter"] = {"method": "lora"}
    settings["training"] |= {"epochs": 2, "batch_size": 4, "head_learning_rate": 0.003}
    return settings


def test_its_file_is_short() -> None:
    assert len(Path(counting.__file__).read_text(encoding="utf-8").splitlines()) < 80


def test_it_learns_by_its_own_loss_and_is_scored(settings: Settings, write: Write) -> None:
    settings["adapter"] = {"method": "dora"}
    settings["training"] |= {"epochs": 20, "learning_rate": 0.03, "scheduler": "constant"}
    outcome = train.run(configs.load(write(settings)), progress=False)
    record = outcome.record
    assert (record["task"], record["metric"]) == ("counting_words", "within one")
    assert set(record["final"]) == {
        *("epoch", "step", "loss", "within one", "within one_low", "within one_high", "mean error")
    }
    assert record["final"]["mean error"] < 0.75 * record["baseline"]["mean error"]
    # The loss in the record is Huber's; transformers' own for a regression is the mean square.
    rows = tasks.get("counting_words").load(settings["task"]["data"])["validation"]
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder, num_labels=1).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(outcome.folder)
    batch = next(tasks.get("counting_words").batches(rows, tokenizer, 16, len(rows)))
    with torch.no_grad():
        loss, _ = counting.CountingWords().loss(model, batch)
    assert record["final"]["loss"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("method", ["fishmask", "fish_dip"])
def test_what_is_chosen_from_data_is_chosen_by_its_loss(
    method: str, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["adapter"] = {"method": method}
    settings["training"] |= {"max_steps": 2, "epochs": 1}
    calls: list[Any] = []
    loss = counting.CountingWords.loss
    monkeypatch.setattr(counting.CountingWords, "loss", lambda *given: (calls.append(given), loss(*given))[1])
    monkeypatch.setattr(train, "_fit", lambda *given: pytest.fail("the choice comes before the training"))
    with pytest.raises(pytest.fail.Exception):
        train.run(configs.load(write(settings)), progress=False)
    assert len(calls) == counting.ROWS["train"]  # one gradient for each row


@pytest.mark.parametrize("step", [7, 13])
def test_it_resumes_bit_for_bit(step: int, settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    settings["training"] |= {"save_steps": 5}
    config = configs.load(write(settings))
    whole = train.run(configs.load(write({**settings, "output": settings["output"] + "-whole"})), progress=False)
    training_step = SeededTrainer.training_step

    def stop(self: SeededTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SeededTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, progress=False)
    parted = train.run(config, progress=False)
    assert parted.record["resumed_from_step"] == {7: 5, 13: 12}[step]
    assert parted.record["history"] == whole.record["history"]
    one, other = (load_file(run.folder / "adapter_model.safetensors") for run in (whole, parted))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_it_generates_is_scored_in_place_of_the_outputs(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(task: Any, model: Any, batch: Any) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return (batch["attention_mask"].sum(1, keepdim=True) - 2).float()  # without the two marks around a text

    monkeypatch.setattr(counting.CountingWords, "generate", words)
    settings["training"] |= {"epochs": 1}
    record = train.run(configs.load(write(settings)), progress=False).record
    assert record["score"] == 1.0 and record["final"]["mean error"] == 0.0


def test_smoothing_labels_is_refused_where_the_loss_is_its_own(settings: Settings, write: Write) -> None:
    settings["training"] |= {"label_smoothing": 0.1}
    with pytest.raises(SubspaceError, match=r"training\.label_smoothing has no meaning with task Counting-Words"):
        configs.load(write(settings))


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(SubspaceError, match="there is already a task 'counting_words'"):
        tasks.register(counting.CountingWords())
    assert "counting_words" in [task.name for task in tasks.every()]
