"""Adapters on disk: extracted, converted, combined, diagnosed - and always loaded again to be believed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from subspace_cli import main
from subspace_tuning import SubspaceConfig, SubspaceLayer, methods
from subspace_tuning.adapters import extract as extraction
from subspace_tuning.adapters.combine import combine_adapters
from subspace_tuning.adapters.convert import convert_adapter
from subspace_tuning.adapters.extract import Extraction, extract
from subspace_tuning.adapters.files import read_adapter, write_adapter
from subspace_tuning.adapters.recommend import candidates
from subspace_tuning.models.checkpoint import Checkpoint

CHOOSING = ("spt", "s_bitfit")  # what each matrix gets they choose from data
LINEAR = [
    one.name
    for one in methods.every()
    if one.formula.is_linear and not one.formula.wraps_norm and one.name not in CHOOSING
]
SEARCHED = [one.name for one in candidates()[1]]  # by the general solver, which takes a minute here
TARGETS = ["query", "value", "output.dense"]
IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 5, 6, 3]])


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with other matrices and biases, and with a head."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(tiny_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder" in name and "LayerNorm" not in name:
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter) + 1e-3
    folder = tmp_path_factory.mktemp("tuned")
    model.save_pretrained(folder)
    return folder


def load(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(base), str(adapter)).eval()


def scores(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def layers(model: Any) -> dict[str, SubspaceLayer]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, SubspaceLayer)}
    return {name.removeprefix("base_model.model."): layer for name, layer in found.items()}


def wanted(name: str, **fields: Any) -> Extraction:
    targets = None if methods.get(name).formula.names_bias else TARGETS
    return Extraction(SubspaceConfig(method=name, r=4, alpha=4.0, target_modules=targets, **fields))


# Extraction


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SEARCHED else []) for name in LINEAR]
)
def test_an_extracted_adapter_has_the_reported_error(base: Path, tuned: Path, tmp_path: Path, name: str) -> None:
    rows = extract(Checkpoint(str(base)), Checkpoint(str(tuned)), wanted(name), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/report.json").read_text()) == rows
    model, other = load(base, tmp_path / "adapter"), BertForSequenceClassification.from_pretrained(tuned)
    found = layers(model)
    assert found.keys() == {row["module"] for row in rows}
    for row in rows:
        layer, module = found[row["module"]], other.get_submodule(row["module"])
        layer.merge()
        if methods.get(name).formula.names_bias:
            assert torch.allclose(layer.bias, module.bias, atol=1e-6)
        else:
            error = torch.linalg.vector_norm(layer.weight - module.weight) / torch.linalg.vector_norm(module.weight)
            assert float(error) == pytest.approx(row["relative_error"], rel=1e-3, abs=1e-6)
    for key, tensor in other.classifier.state_dict().items():
        assert torch.equal(model.base_model.model.classifier.modules_to_save["default"].state_dict()[key], tensor)


def test_the_full_rank_is_the_fine_tuned_model(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Matrices exactly, all else from the tuned model: then the scores are those of the tuned model."""
    middle = BertForSequenceClassification.from_pretrained(base)
    other = BertForSequenceClassification.from_pretrained(tuned)
    for name, module in other.named_modules():
        if name.endswith(("query", "value", "output.dense")):
            middle.get_submodule(name).weight = module.weight
    middle.classifier, middle.bert.pooler = other.classifier, other.bert.pooler
    middle.save_pretrained(tmp_path / "middle")
    whole = Extraction(SubspaceConfig(method="lora", r=32, alpha=32.0, target_modules=TARGETS))
    extract(Checkpoint(str(base)), Checkpoint(str(tmp_path / "middle")), whole, tmp_path / "adapter")
    assert torch.allclose(scores(load(base, tmp_path / "adapter")), scores(middle.eval()), atol=1e-5)


def test_ranks_by_energy_and_by_budget(base: Path, tuned: Path, tmp_path: Path) -> None:
    pair = Checkpoint(str(base)), Checkpoint(str(tuned))
    config = SubspaceConfig(method="lora", target_modules=TARGETS)
    for share in (0.5, 0.9):
        rows = extract(*pair, Extraction(config, energy=share), tmp_path / str(share))
        assert all(1 - row["change_error"] ** 2 >= share - 1e-6 for row in rows)
        assert any(row["rank"] != rows[0]["rank"] for row in rows)
        assert layers(load(base, tmp_path / str(share))).keys() == {row["module"] for row in rows}
    rows = extract(*pair, Extraction(config, budget="3k"), tmp_path / "budget")
    assert 2800 < sum(row["parameters"] for row in rows) <= 3000
    even = extract(*pair, Extraction(SubspaceConfig(method="lora", r=5, target_modules=TARGETS)), tmp_path / "even")

    def lost(found: list[dict[str, Any]]) -> float:
        changes = [row["change_error"] * row["change"] for row in found]
        return float(torch.tensor(changes).norm())

    assert sum(row["parameters"] for row in even) == 2720
    assert lost(rows) < lost(even)


def test_an_interrupted_extraction_goes_on(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Checkpoint(str(base)), Checkpoint(str(tuned))
    extract(*pair, wanted("lora"), tmp_path / "whole")
    real, done = extraction.approximate, []

    def counted(*arguments: Any, **options: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(extraction, "approximate", counted)
    with pytest.raises(KeyboardInterrupt):
        extract(*pair, wanted("lora"), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
    done.clear()
    monkeypatch.setattr(extraction, "approximate", lambda *a, **o: (done.append(1), real(*a, **o))[1])
    extract(*pair, wanted("lora"), tmp_path / "parts")
    assert len(done) == 8 - 3
    assert not (tmp_path / "parts.part").exists()
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_wishes_begin_anew(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Checkpoint(str(base)), Checkpoint(str(tuned))
    real = extraction.approximate
    done: list[int] = []

    def stopped(*arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(extraction, "approximate", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(*pair, wanted("lora"), tmp_path / "adapter")
    monkeypatch.setattr(extraction, "approximate", real)
    rows = extract(*pair, wanted("dora"), tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter").method.name == "dora"
    assert all(row["parameters"] for row in rows)


def test_shards_are_read_as_one_file(base: Path, tuned: Path, tmp_path: Path) -> None:
    BertForSequenceClassification.from_pretrained(tuned).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    for folder in (tuned, tmp_path / "shards"):
        extract(Checkpoint(str(base)), Checkpoint(str(folder)), wanted("lora"), tmp_path / f"from-{folder.name}")
    one, other = (load_file(tmp_path / f"from-{name}" / "adapter_model.safetensors") for name in (tuned.name, "shards"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def _lose_shard(folder: Path) -> None:
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _damage(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.1.attention.self.query.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _other_width(folder: Path) -> None:
    config = BertConfig.from_pretrained(folder)
    config.intermediate_size = 64
    BertForSequenceClassification(config).save_pretrained(folder)


def _other_kind(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder)
    small = LlamaConfig(vocab_size=35, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(small).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (_lose_shard, [], "shard model-00002"),
        (_damage, [], "layer.1.attention.self.query.weight holds NaN"),
        (_cut, [], "cannot be read"),
        (_other_width, [], "intermediate.dense: the weight is [48, 32]"),
        (_other_kind, [], "is a bert and"),
        (None, ["--method", "parallel_adapter"], "has a nonlinearity"),
        (None, ["--rank", "33"], "rank 33 is above min(n, m) = 32"),
        (None, ["--method", "spt"], "it chooses the form of each matrix from data"),
        (None, ["--energy", "1.5"], "not a share between 0 and 1"),
        (None, ["--energy", "0.5", "--budget", "3k"], "not two of them"),
        (None, ["--method", "ssb", "--budget", "3k"], "no rank"),
        (None, ["--budget", "3"], "below rank 1"),
        (None, ["--target", "nothing"], "not found in the base model"),
    ],
)
def test_bad_input_is_told_in_one_line(
    base: Path,
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None] | None,
    options: list[str],
    words: str,
) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    if change is not None:
        change(folder)
    capsys.readouterr()
    assert call("extract", base, folder, "-o", tmp_path / "out", *options) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert words in told[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_is_kept(base: Path, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("mine")
    assert call("extract", base, tuned, "-o", tmp_path / "out", "--overwrite") == 2
    assert (tmp_path / "out/diary.txt").read_text() == "mine"
    assert call("extract", base, tuned, "-o", tmp_path / "adapter", "-t", "query") == 0
    assert call("extract", base, tuned, "-o", tmp_path / "adapter", "-t", "query") == 2
    assert call("extract", base, tuned, "-o", tmp_path / "adapter", "-t", "query", "--overwrite") == 0


# Conversion


def adapted(base: Path, folder: Path, config: Any) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(BertForSequenceClassification.from_pretrained(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return model


def own(name: str, **fields: Any) -> SubspaceConfig:
    fields = {"r": 4, "init_weights": False, "target_modules": TARGETS, "modules_to_save": ["classifier"], **fields}
    return SubspaceConfig(method=name, **fields)


ALONE = """
import sys, torch
from peft import PeftModel
from transformers import BertForSequenceClassification
from safetensors.torch import load_file, save_file
base, ids, output, *adapters = sys.argv[1:]
found = {}
for adapter in adapters:
    model = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        found[adapter] = model(input_ids=load_file(ids)["ids"]).logits
save_file(found, output)
assert "subspace_tuning" not in sys.modules
"""


def test_peft_alone_gives_the_same_scores(base: Path, tmp_path: Path) -> None:
    expected = {}
    for name in ("lora", "trilora", "flora", "adalora", "dora", "ssb"):
        model = adapted(base, tmp_path / f"own-{name}", own(name, rank_pattern={"query": 2}, alpha=6.0))
        exact = name not in ("dora", "ssb")
        # These two move all directions: only the full rank keeps their change whole.
        words = [] if exact else ["--base", base, "--rank", 32]
        folder = tmp_path / name
        assert call("convert", tmp_path / f"own-{name}", "--to", "peft-lora", "-o", folder, *words) == 0
        expected[str(folder)] = scores(model)
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    command = [sys.executable, "-c", ALONE, base, tmp_path / "ids.safetensors", tmp_path / "scores", *expected]
    subprocess.run(list(map(str, command)), check=True)
    found = load_file(tmp_path / "scores")
    for folder, logits in expected.items():
        assert torch.allclose(found[folder], logits, atol=1e-5), folder


@pytest.mark.parametrize("rank", [1, 3])
def test_the_told_error_is_that_of_the_loaded_adapter(base: Path, tmp_path: Path, rank: int) -> None:
    adapted(base, tmp_path / "own", own("ssb"))
    result = convert_adapter(read_adapter(tmp_path / "own"), "lora", rank, Checkpoint(str(base)))
    write_adapter(tmp_path / "lora", result.adapter)
    before, after = (layers(load(base, tmp_path / name)) for name in ("own", "lora"))
    for row in result.layers:
        change, other = (found[row.module].get_delta_weight("default") for found in (before, after))
        assert float((change - other).norm() / change.norm()) == pytest.approx(row.error, rel=1e-3)
    assert (
        call(
            "convert",
            tmp_path / "own",
            "--to",
            "lora",
            "-r",
            1,
            "--base",
            base,
            "-o",
            tmp_path / "x",
            "--tolerance",
            0.01,
        )
        == 2
    )
    assert not (tmp_path / "x").exists()


# Of the masks one is enough that needs no data.
READABLE = [
    name for name in LINEAR if not (methods.get(name).formula.names_bias or methods.get(name).needs_calibration)
]


@pytest.mark.parametrize("source", READABLE)
def test_every_adapter_is_read_as_it_is_run(base: Path, tmp_path: Path, source: str) -> None:
    """Converted to a dense change of every matrix, whatever the method: the scores stay."""
    config = own(source, budget=40) if methods.get(source).formula.masked else own(source)
    model = adapted(base, tmp_path / "own", config)
    assert call("convert", tmp_path / "own", "--to", "W + Delta", "--base", base, "-o", tmp_path / "dense") == 0
    assert torch.allclose(scores(load(base, tmp_path / "dense")), scores(model), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}]
)
def test_adapters_of_peft_are_read(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, modules_to_save=["classifier"], **options)
    model = adapted(base, tmp_path / "theirs", config)
    for to in ("lora", "flora", "peft-lora"):
        assert call("convert", tmp_path / "theirs", "--to", to, "-o", tmp_path / to) == 0
        assert torch.allclose(scores(load(base, tmp_path / to)), scores(model), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoraConfig(target_modules=["query"], use_dora=True), "use_dora"),
        (LoraConfig(target_modules=["query"], bias="all"), "bias='all'"),
    ],
)
def test_adapters_of_peft_that_are_more_than_lora_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: LoraConfig, words: str
) -> None:
    adapted(base, tmp_path / "theirs", config)
    assert call("convert", tmp_path / "theirs", "--to", "lora", "-o", tmp_path / "out") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("names", [("lora", "flora"), ("lora", "ssb"), ("dora", "svdiff")])
def test_combined_adapters_add_their_changes(base: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    weights = (0.7, -0.4)
    for name in names:
        adapted(base, tmp_path / name, own(name, modules_to_save=None))
    found = [layers(load(base, tmp_path / name)) for name in names]
    result = combine_adapters([read_adapter(tmp_path / name) for name in names], weights, base=Checkpoint(str(base)))
    assert result.error < 1e-6
    write_adapter(tmp_path / "both", result.adapter)
    both = layers(load(base, tmp_path / "both"))
    for module in both:
        wanted_change = sum(
            weight * own_layers[module].get_delta_weight("default")
            for weight, own_layers in zip(weights, found, strict=True)
        )
        assert torch.allclose(both[module].get_delta_weight("default"), wanted_change, atol=1e-5)


def test_heads_are_not_added_up(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("lora", "flora")):
        model = adapted(base, tmp_path / name, own(name))
        torch.nn.init.constant_(model.base_model.model.classifier.modules_to_save["default"].bias, float(number))
        model.save_pretrained(str(tmp_path / name))
    words = ["combine", tmp_path / "lora", tmp_path / "flora", "-o", tmp_path / "both"]
    assert call(*words) == 2
    assert "heads cannot be added" in capsys.readouterr().err
    assert call(*words, "--head", 2, "--weights", "1,1") == 0
    saved = load_file(tmp_path / "both/adapter_model.safetensors")
    assert saved["base_model.model.classifier.bias"].tolist() == [1.0, 1.0]
    assert call(*words, "--weights", "1,2,3") == 2
    assert call(*words, "--weights", "one,two") == 2


def test_an_adapter_of_another_model_is_told(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted(base, tmp_path / "own", own("ssb"))
    config = BertConfig.from_pretrained(base)
    config.intermediate_size = 64
    BertForSequenceClassification(config).save_pretrained(tmp_path / "wide")
    assert call("convert", tmp_path / "own", "--to", "lora", "--base", tmp_path / "wide", "-o", tmp_path / "out") == 2
    assert "layer.0.output.dense" in capsys.readouterr().err
    assert call("inspect", base, tmp_path / "missing") == 2
    assert "no adapter" in capsys.readouterr().err


# Diagnosis and recommendation


def test_inspect_writes_tables_and_figures(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lora", "ssb"):
        adapted(base, tmp_path / name, own(name))
    words = ["inspect", base, tmp_path / "lora", "--against", tmp_path / "ssb", "-k", 4]
    frames = []
    for ending, read in ((".parquet", pd.read_parquet), (".csv", pd.read_csv), (".json", pd.read_json)):
        assert call(*words, "-o", tmp_path / f"table{ending}", "--figures", tmp_path / "figures") == 0
        frames.append(read(tmp_path / f"table{ending}"))
    found = frames[0]
    pd.testing.assert_frame_equal(found, frames[1], check_dtype=False)
    assert len(found) == len(frames[2]) == 8
    assert (found["stable_rank"] <= 4 + 1e-9).all()
    assert (found["effective_rank"] >= found["stable_rank"] - 1e-9).all()
    assert found["reconstruction_share"].add(found["extension_share"]).eq(1).all()
    assert found["other_cosine"].abs().le(1).all()
    model = load(base, tmp_path / "lora")
    for _, row in found.iterrows():
        layer = layers(model)[row["module"]]
        change = torch.linalg.vector_norm(layer.get_delta_weight("default")) / torch.linalg.vector_norm(
            layer.frozen_weight
        )
        assert row["change"] == pytest.approx(float(change), rel=1e-5)
    for name in ("spectra", "angles", "projection"):
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert call(*words, "-o", tmp_path / "table.txt") == 2
    assert call("inspect", base) == 2


def test_recommendations_follow_the_evidence(
    base: Path, tuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", base, "--budget", "4k", "-o", tmp_path / "found.json"]
    assert call(*words, "--tuned", tuned) == 0
    found = {one["method"]: one for one in json.loads((tmp_path / "found.json").read_text())["methods"]}
    assert found["dora"]["share"] > 0
    assert found["ssb"]["share"] >= max(found["ssl"]["share"], found["ia3"]["share"])
    assert all(0 <= one["share"] <= 1 for one in found.values())
    count = found["lora"]["parameters"]
    assert call("recommend", base, "--tuned", tuned, "-m", "lora", "--budget", count, "-o", tmp_path / "same.json") == 0
    even, spread = sorted(
        json.loads((tmp_path / "same.json").read_text())["methods"], key=lambda one: len(one["method"])
    )
    assert spread["parameters"] <= even["parameters"] == count
    assert spread["share"] >= even["share"]
    assert call(*words, "--task", "cola", "--data", data, "-m", "lora", "-m", "ssb", "-m", "pissa") == 0
    assert call(*words) == 2
    assert call(*words, "--tuned", base) == 2
    assert "the evidence contains no change" in capsys.readouterr().err


def test_counts_are_matched_to_a_budget(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("params", base, "-m", "lora", "-m", "pafi", "-m", "ssb", "--budget", "2k") == 0
    told = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line}
    assert lines["pafi"][-1] == "+0"
    assert abs(int(lines["lora"][-1].replace(",", ""))) <= 2 * (32 + 32) * 12
    assert call("params", base, "-m", "lora", "--budget", "lots") == 2


def test_a_run_is_sized_by_its_parameters(settings: dict[str, Any], write: Callable[[Any], Path]) -> None:
    """The nearest rank, exactly the number of entries, and what a method trains anyway."""
    for number, (adapter, near) in enumerate(
        [({"method": "lora"}, (1500, 2700)), ({"method": "pafi"}, (2000, 2000)), ({"method": "ssb"}, (1, 10**6))]
    ):
        settings["adapter"] = {**adapter, "parameters": "2k"}
        settings["output"] = str(Path(settings["output"]).with_name(f"run{number}"))
        settings["training"]["epochs"] = 1
        assert call("train", write(settings)) == 0
        record = json.loads((Path(settings["output"]) / "run.json").read_text())
        assert near[0] <= record["parameters"]["adapter"] <= near[1]


@pytest.mark.parametrize("adapter", [{"r": 4}, {"budget": 100}])
def test_two_sizes_are_refused(
    settings: dict[str, Any], write: Callable[[Any], Path], adapter: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings["adapter"] = {"method": "pafi", "parameters": "2k", **adapter}
    assert call("train", write(settings)) == 2
    assert "adapter.parameters sizes the method" in capsys.readouterr().err


def test_plans_and_benchmarks_take_a_budget(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", base, "--plan", "-m", "lora", "--budget", "2k") == 0
    assert "r = 2" in capsys.readouterr().out
    from subspace_tuning.bench.arms import arms
    from subspace_tuning.bench.settings import bert_block

    ranks = {arm.name: arm.rank for arm in arms(["lora", "dora"], matching=(bert_block(32, layers=2), "10k"))}
    assert ranks["lora"] > 1
    assert ranks["dora"] <= ranks["lora"]
