"""The whole catalogue on a real pretrained encoder and a real task, its counts, its page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from subspace_cli import main
from subspace_tuning import SubspaceError, SubspaceLayer, load_mam, methods
from subspace_tuning.counting.paper import BUDGETS, ROWS, Compared, compare
from subspace_tuning.methods.catalogue import laws
from subspace_tuning.methods.schedules.lora_dash import LoRADash
from subspace_tuning.tasks.data.acceptability import generate
from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train

from .conftest import FIXED, write_split

Write = Callable[[Mapping[str, Any]], Path]
Settings = dict[str, Any]

EVERY = [known.name for known in (*methods.every(), *methods.hosted())]
# One that scales W, one that adds to it by a schedule, one of peft's; the others take minutes together.
QUICK = ["ssb", "adalora", "prefix_tuning"]
ROWS_OF_TEXT = 16
TEXTS = ["The cat sleeps.", "Cat the sleeps it."]
BOUND = 2e-4  # float32, six layers deep


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen sentences, acceptable or not, for training and evaluation alike: what is learnt must show in the loss."""
    folder = tmp_path_factory.mktemp("sentences")
    rows = [dict(example) | {"idx": number} for number, example in enumerate(generate("train", ROWS_OF_TEXT, seed=0))]
    for split in ("train", "validation"):
        write_split(folder, split, rows)
    return folder


def minilm_run(method: str, sentences: Path, output: Path) -> Settings:
    adapter: Settings = {"method": method, "calibration_rows": 8}
    if method in methods.HOSTED:
        adapter = {"method": method, "r": 8}
    elif method == "xattn":
        adapter["target_modules"] = ["query", "value"]  # an encoder has no cross-attention
    if method in ("adalora", "flexlora"):
        adapter["schedule"] = {"t_init": 2, "t_final": 4, "interval": 2, "target_rank": 7}
    epochs = 60 if method == "prompt_tuning" else 8  # rows before the input have far to go
    return {
        "model": "minilm",
        "output": str(output),
        "task": {"name": "cola", "data": str(sentences), "max_length": 24},
        "adapter": adapter,
        "training": {"epochs": epochs, "batch_size": 16, "head_learning_rate": 1e-3, **FIXED},
    }


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_every_method_trains_on_a_real_encoder(
    method: str, sentences: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls, every declared factor moves, nothing else does, and merging changes no output."""
    seen: dict[str, Any] = {}
    fit, save = train._fit, train._save

    def begin(trainer: Any, checkpoint: Any, start: Any) -> Any:
        seen["start"] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        return fit(trainer, checkpoint, start)

    def end(parts: Any, *args: Any) -> None:
        seen["model"] = parts.model
        save(parts, *args)

    monkeypatch.setattr(train, "_fit", begin)
    monkeypatch.setattr(train, "_save", end)
    outcome = train.run(configs.load(write(minilm_run(method, sentences, tmp_path / "run"))), progress=False)
    losses = [entry["loss"] for entry in outcome.record["history"]]
    assert losses[-1] < losses[0]

    model, start = seen["model"].eval(), seen["start"]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {name for name in trainable if ".subspace_params." in name or "prompt_encoder" in name}
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    for layer in layers:
        for adapter, parameters in layer.subspace_params.items():
            assert set(parameters) == set(layer.method[adapter].formula.trainable)
    assert factors
    for name, tensor in model.state_dict().items():
        moved = not torch.equal(tensor, start[name])
        chosen = name.endswith((".M", ".U_k", ".V_k"))  # schedules move those
        assert moved == (name in trainable) or chosen or not tensor.numel(), name

    if method in methods.HOSTED:
        return
    batch = AutoTokenizer.from_pretrained(outcome.folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
        if layers[0].method["default"].formula.is_linear:
            model.merge_adapter()
            torch.testing.assert_close(model(**batch).logits, expected, atol=BOUND, rtol=BOUND)
            model.unmerge_adapter()
        else:
            with pytest.raises(SubspaceError, match="cannot be merged"):
                model.merge_adapter()
        assert torch.equal(model(**batch).logits, expected)
        loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder).eval()
        assert torch.equal(loaded(**batch).logits, expected)


def test_mix_and_match_is_saved_and_loaded_whole(sentences: Path, tmp_path: Path, write: Write, minilm: Path) -> None:
    kept: list[Any] = []
    outcome = None
    with pytest.MonkeyPatch.context() as patch:
        save = train._save
        patch.setattr(train, "_save", lambda parts, *args: (kept.append(parts.model), save(parts, *args)))
        outcome = train.run(configs.load(write(minilm_run("mam", sentences, tmp_path / "run"))), progress=False)
    base = AutoModelForSequenceClassification.from_pretrained(minilm)
    loaded = load_mam(base, outcome.folder)
    batch = AutoTokenizer.from_pretrained(outcome.folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, kept[0].eval()(**batch).logits)
    (outcome.folder / "parallel_adapter.json").unlink()
    with pytest.raises(SubspaceError, match=r"has a prefix but no parallel_adapter\.json"):
        load_mam(AutoModelForSequenceClassification.from_pretrained(minilm), outcome.folder)


def test_a_saved_lora_dash_uses_its_directions_from_the_first_forward(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["adapter"] = {"method": "lora_dash", "r": 4, "schedule": {"launch": 2, "directions": 3}}
    outcome = train.run(configs.load(write(settings)), progress=False)
    monkeypatch.setattr(LoRADash, "step", lambda self, step: pytest.fail("nothing is launched at inference"))
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder).eval()
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    told = outcome.record["schedule"]["directions"]
    assert len(told) == len(layers)
    for layer, index in zip(layers, told.values(), strict=True):
        U, _, right = torch.linalg.svd(layer.kind.matrix(layer.frozen_weight).double(), full_matrices=False)
        for name, basis in (("U_k", U), ("V_k", right.T)):
            cosine = (getattr(layer.subspace_constants["default"], name).double() * basis[:, index]).sum(0).abs()
            torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-4, rtol=0)
        assert layer.factor("d").abs().min() > 0


def test_schedules_count_optimiser_steps_under_accumulation(
    settings: Settings, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    step = LoRADash.step
    monkeypatch.setattr(LoRADash, "step", lambda self, number: (counted.append(number), step(self, number)))
    settings["adapter"] = {"method": "lora_dash", "r": 4, "schedule": {"launch": 2, "directions": 3}}
    settings["training"] |= {"batch_size": 4, "gradient_accumulation": 4, "epochs": 2}
    record = train.run(configs.load(write(settings)), progress=False).record
    assert counted == list(range(1, record["steps"] + 1)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"method": "ssb", "pattern": "orthogonal"}, "method 'ssb' has none"),
        ({"method": "lora_dash", "schedule": {"launch": 6}}, "the schedule is longer than the run: LoRA-Dash's launch"),
        ({"method": "adalora", "schedule": {"t_init": 9}}, "the schedule is longer than the run"),
        ({"method": "pafi", "budget": 10**8}, "budget = 100,000,000 is above the"),
        ({"method": "fishmask", "budget": 10**8}, "budget = 100,000,000 is above the"),
        ({"method": "prefix_tuning", "alpha": 3.0}, "adapter.alpha has no meaning with method 'prefix_tuning'"),
        ({"method": "prefix_tuning", "r": 0}, "r = 0 is not a positive whole number"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_any_training(
    adapter: Settings, message: str, settings: Settings, write: Write
) -> None:
    settings["adapter"] = adapter
    with pytest.raises(SubspaceError) as caught:
        train.run(configs.load(write(settings)), progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(settings["output"]).exists()


def test_a_ratio_for_b_without_b(settings: Settings, write: Write) -> None:
    settings["training"]["lora_plus_ratio"] = 16.0
    with pytest.raises(SubspaceError, match="a ratio for B is given, but the model trains no factor B"):
        train.run(configs.load(write(settings)), progress=False)


def test_lora_plus_trains_b_faster(settings: Settings, write: Write, tmp_path: Path) -> None:
    """With B's rate at zero but for the ratio, only the ratio moves it."""
    settings["adapter"] = {"method": "lora", "r": 2}
    moved = {}
    for ratio in (1.0, 16.0):
        settings["output"] = str(tmp_path / str(ratio))
        settings["training"] |= {"lora_plus_ratio": ratio, "learning_rate": 1e-4, "max_steps": 1}
        outcome = train.run(configs.load(write(settings)), progress=False)
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(outcome.folder)
        layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
        moved[ratio] = torch.stack([layer.factor("B").abs().max() for layer in layers])
    # Adam's first step is the rate itself, and warm-up gives both runs the same share of it.
    torch.testing.assert_close(moved[16.0], 16.0 * moved[1.0], rtol=1e-3, atol=0)


def test_the_penalty_counts_with_smoothed_labels_too(settings: Settings, write: Write, tmp_path: Path) -> None:
    distances = {}
    for weight in (1e-9, 1.0):
        settings["output"] = str(tmp_path / str(weight))
        settings["adapter"] = {"method": "trilora", "r": 3, "pattern": "orthogonal", "pattern_weight": weight}
        settings["training"] |= {"label_smoothing": 0.1, "epochs": 8}
        record = train.run(configs.load(write(settings)), progress=False).record
        distances[weight] = max(found["A"] + found["B"] for found in record["orthogonality"].values())
        penalties = [entry["penalty"] for entry in record["history"]]
        matrices = record["orthogonality"].values()
        last = weight * sum(found["A"] ** 2 + found["B"] ** 2 for found in matrices) / len(matrices)
        assert penalties[-1] == pytest.approx(last, rel=1e-4)
    assert distances[1.0] < 0.5 * distances[1e-9]


# Counts

TOTALS = {"roberta-base": 124_647_170, "deberta-v3-base": 184_423_682, "roberta-large": 355_361_794}
EXACT: dict[str, dict[str, int]] = {
    "SAM-PARSER": {"roberta-base": 55_296, "deberta-v3-base": 55_296, "roberta-large": 147_456},
    "(IA)^3": {"roberta-base": 55_296, "deberta-v3-base": 55_296, "roberta-large": 147_456},
    "SSL": {"roberta-base": 27_648, "deberta-v3-base": 27_648, "roberta-large": 73_728},
    "SSB": {"roberta-base": 82_944, "deberta-v3-base": 82_944, "roberta-large": 221_184},
    "BitFit": {"roberta-base": 102_144, "deberta-v3-base": 102_912, "roberta-large": 271_360},
    "HAdapter": {"roberta-base": 313_536, "deberta-v3-base": 313_536, "roberta-large": 835_968},
    "PAdapter": {"roberta-base": 304_320, "deberta-v3-base": 304_320, "roberta-large": 811_392},
    "PA": {"roberta-base": 331_776, "deberta-v3-base": 331_776, "roberta-large": 884_736},
    "LoRA": {"roberta-base": 331_776, "deberta-v3-base": 331_776, "roberta-large": 884_736},
    "TriLoRA": {"roberta-base": 331_920, "deberta-v3-base": 331_920, "roberta-large": 885_024},
    "AdaLoRA": {"roberta-base": 331_920, "deberta-v3-base": 331_920, "roberta-large": 885_024},
    "FLoRA": {"roberta-base": 332_064, "deberta-v3-base": 332_064, "roberta-large": 885_312},
    "DoRA": {"roberta-base": 414_720, "deberta-v3-base": 414_720, "roberta-large": 1_105_920},
}
# The paper's own figures here lie on no line through its other budgets; our counts are exact.
DIFFERENT = {("deberta-v3-base", "HAdapter", 8), ("deberta-v3-base", "PAdapter", 8)}


@pytest.mark.parametrize(
    "model",
    ["deberta-v3-base", *(pytest.param(f"roberta-{size}", marks=pytest.mark.slow) for size in ("base", "large"))],
)
def test_the_papers_shares_are_reproduced(model: str) -> None:
    found: list[Compared] = list(compare(model))
    assert len(found) == sum(len(BUDGETS) if row.rank else 1 for row in ROWS) == 57
    differing = {(model, one.row.name, one.budget) for one in found if not one.agrees}
    assert differing == {case for case in DIFFERENT if case[0] == model}
    for one in found:
        assert one.counted.total == TOTALS[model]
        if one.row.name in EXACT and one.budget in (None, 2):
            assert one.counted.trainable == EXACT[one.row.name][model], one.row.name


def test_the_paper_has_no_figures_for_other_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["params", "minilm", "--paper"])
    assert ended.value.code == 2
    assert "the paper has no figures for 'minilm'; known: deberta-v3-base, roberta-base" in capsys.readouterr().err


def test_params_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["params", "minilm"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    for name in EVERY:
        assert name in rows or (name == "xattn" and "left out: xattn" in printed), name
    assert "20,736" in rows["ssb"] and "331,776" in rows["lora"]


# The page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_catalogue_is_the_registrys() -> None:
    """`subspace methods --markdown > docs/catalogue.md` brings it up to date."""
    text = (DOCS / "catalogue.md").read_text(encoding="utf-8")
    command = [sys.executable, "-c", "from subspace_cli import main; main(['methods', '--markdown'])"]
    printed = subprocess.run(command, check=True, capture_output=True).stdout  # no other test's methods are there
    assert printed.decode("utf-8") == text
    for name in EVERY:
        assert f"### {name}\n" in text


@pytest.mark.parametrize("known", methods.every(), ids=lambda known: known.name)
def test_every_method_keeps_the_laws(known: methods.Method) -> None:
    assert all(holds is not False for holds in laws(known).values()), laws(known)


def test_a_broken_method_is_told_by_the_page() -> None:
    wrong = methods.from_formula("W + A @ B", name="wrong", starts={"A": "zeros", "B": "zeros"})
    broken = laws(methods.Method("wrong", wrong.formula, "extension", starts={"B": "normal", "A": "normal"}, count="r"))
    assert broken["phi(W) = W at the start"] is False
    assert broken["count as declared"] is False


def test_latex(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["methods", "spectral", "--latex"])
    assert capsys.readouterr().out.strip() == r"(U_{r} + A) S_{r} (V_{r} + B)^\top + W_{\mathrm{rest}}"


@pytest.mark.parametrize("name", EVERY)
def test_each_method_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["methods", name])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "citation" in printed and len(printed.splitlines()) > 8


def test_the_record_tells_the_orthogonality(settings: Settings, write: Write) -> None:
    settings["adapter"] = {"method": "lora", "r": 3}
    outcome = train.run(configs.load(write(settings)), progress=False)
    told = json.loads((Path(settings["output"]) / "run.json").read_text())["orthogonality"]
    assert len(told) == 12 and {"A", "B", "cosine_A", "cosine_B"} == set(next(iter(told.values())))
    assert outcome.record["schedule"] == {}
