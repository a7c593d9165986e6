"""`subspace bench`: what it counts is exact, what it times is only checked for form, and nobody is beaten on memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from subspace_cli import bench as command
from subspace_cli import main
from subspace_tuning import methods
from subspace_tuning.bench import arms, curves, measure, settings
from subspace_tuning.bench.arms import FLOOR, FULL, Arm, build
from subspace_tuning.bench.choices import BenchPrecision, Curve
from subspace_tuning.bench.settings import ModelShape, bert_block

SMALL = bert_block(32, layers=2, batch=4, tokens=16)
PRECISIONS = list(BenchPrecision)
BESIDE: tuple[arms.Source, ...] = ("ours", "peft")


def bench_of(
    source: Any, name: str, precision: BenchPrecision = BenchPrecision.float32, shape: ModelShape = SMALL
) -> arms.Bench:
    torch.manual_seed(0)
    return build(Arm(source, name), shape.model(precision), shape, precision)


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda one: one.value)
@pytest.mark.parametrize("name", arms.PEFT)
def test_no_more_is_kept_for_the_backward_pass_than_by_peft(name: str, precision: BenchPrecision) -> None:
    """Up to the factors that are made from start and offset here, and the weights that the first layer casts."""
    shape = bert_block(256, batch=8, tokens=64)
    ours, theirs = (build(Arm(source, name, 2), shape.model(precision), shape, precision) for source in BESIDE)
    factors = sum(p.nbytes for key, p in ours.model.named_parameters() if "subspace_params" in key)
    assert measure.saved_bytes(ours) <= 1.03 * measure.saved_bytes(theirs) + factors


@pytest.mark.parametrize("name", [known.name for known in methods.every() if known.name != "xattn"])
def test_every_method_can_be_measured(name: str) -> None:
    bench = bench_of("ours", name)
    before = {key: value.clone() for key, value in bench.model.state_dict().items()}
    bench.step()
    after = bench.model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved, "a step changes something"
    assert not any("subspace" not in key and "classifier" not in key for key in moved), "and nothing that is frozen"


def test_the_floor_trains_the_head_alone_and_full_tuning_everything() -> None:
    floor, full = bench_of("floor", FLOOR.name), bench_of("full", FULL.name)
    assert {name for name, p in floor.model.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert all(parameter.requires_grad for parameter in full.model.parameters())
    embedded = []
    floor.model.bert.embeddings.register_forward_hook(lambda *args: embedded.append(args[-1]))  # type: ignore[union-attr,operator]
    floor.loss().backward()
    assert embedded[0].grad_fn is None, "the gradient starts at the embeddings' output"
    assert embedded[0].requires_grad


def test_arms_share_the_frozen_weights() -> None:
    base = SMALL.model()
    one, other = (build(Arm("ours", name), base, SMALL, BenchPrecision.float32) for name in ("lora", "ssb"))

    def pointers(bench: arms.Bench) -> set[int]:
        return {p.data_ptr() for name, p in bench.model.named_parameters() if name.endswith("query.base_layer.weight")}

    assert pointers(one) <= {p.data_ptr() for p in base.parameters()}
    assert pointers(other) <= {p.data_ptr() for p in base.parameters()}


@pytest.mark.parametrize("batch", [3, 4])
def test_operations_are_those_of_the_products(batch: int) -> None:
    """LoRA's are the floor's, and per matrix either products of rows with A or B, or those of A and B themselves.

    There are six of the former. Where the rows are no fewer than W's other dimension, A @ B is added to W instead,
    forward and backward, and x @ A is had again. The first inputs need no gradient.
    """
    shape = bert_block(256, layers=2, batch=batch, tokens=64)
    base = shape.model(BenchPrecision.float32)
    floor, lora = (
        measure.flops(build(arm, base, shape, BenchPrecision.float32)) for arm in (FLOOR, Arm("ours", "lora"))
    )
    rows, width, rank, layers = batch * 64, 256, 8, 2

    def forward(n: int, m: int) -> int:
        return 2 * rank * (n * m + rows * n if rows >= n else rows * (n + m))

    def inputs(n: int, m: int) -> int:
        return 2 * rank * (n * m if rows >= m else rows * n)

    def factors(n: int, m: int) -> int:
        return 2 * rank * rows * (n + 2 * m)

    sizes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    added = layers * sum(forward(*size) + inputs(*size) + factors(*size) for size in sizes)
    # Queries, keys and values of the first layer.
    left_out = 3 * (2 * rows * width * width + inputs(width, width))
    assert lora - floor == added - left_out


def test_kept_bytes_are_counted_once() -> None:
    linear = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self) -> Any:
            y = x * x  # keeps x, once
            return type("Output", (), {"loss": (self.linear(y) * 2).sum()})()  # the layer keeps y

    bench = arms.Bench(FLOOR, Twice(), {}, BenchPrecision.float32, 0.0)
    assert measure.saved_bytes(bench) == 2 * 4 * 8 * 4


def test_steps_are_interleaved_and_rotated() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}  # type: ignore[misc]
    seconds = measure.interleaved(steps, rounds=4)
    assert order == list("abcbcacababcbcacab")
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_ratio_is_the_median_of_pairs_with_its_interval() -> None:
    ratio = measure.Ratio.of([2.0, 4.0, 6.0, 80.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert ratio.median == 2.0
    assert ratio.low == 2.0
    assert ratio.high == 20.0
    many = measure.Ratio.of([float(number) for number in range(1, 102)], [1.0] * 101)
    assert (many.median, many.low, many.high) == (51.0, 41.0, 61.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.SHAPES, "a", SMALL)
    monkeypatch.setattr(curves, "CURVES", {"rows": (64, 128), "rank": (1, 2), "width": (32, 64), "adapters": (1, 3)})
    monkeypatch.setattr(curves, "WIDTH", 32)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    bench = build(FLOOR, SMALL.model(), SMALL, BenchPrecision.float32)
    assert measure.peak(bench, SMALL, BenchPrecision.float32, 1) > 100


@pytest.mark.usefixtures("small")
def test_the_command_prints_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes, one per arm, are tested above: to start them takes most of a minute.
    monkeypatch.setattr(measure, "peak", lambda bench, *others: float(len(str(bench.arm))))
    output = tmp_path / "found.json"
    words = ["bench", "-m", "lora", "-m", "ssb", "--rounds", "2", "--memory", "-o", str(output)]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert [row["arm"] for row in found["rows"]] == ["frozen floor", "lora", "lora (peft)", "ssb", "full fine-tuning"]
    assert all(row["arm"] in printed for row in found["rows"])
    assert found["rows"][0]["to_floor"] == [1.0, 1.0, 1.0]
    assert all(row["peak_mib"] > 1 for row in found["rows"])
    assert {"date", "machine", "versions"} <= set(found)
    assert list(tmp_path.iterdir()) == [output]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "curve", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("rows", "rank")), "adapters"]
)
def test_growth_curves(curve: str, tmp_path: Path) -> None:
    output = tmp_path / "curve.json"
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--curve", curve, "-m", "lora", "--rounds", "2", "-o", str(output)])
    assert stopped.value.code == 0
    points = json.loads(output.read_text())["points"]
    assert [point["value"] for point in points if point["arm"].startswith("lora")]
    assert all(point["seconds"] > 0 for point in points)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shape", "z"], "unknown shape 'z'"),
        (["-m", "loar"], "did you mean lora"),
        (["-m", "prefix_tuning"], "nothing to compare"),
        (["-o", "nowhere/found.json"], "does not exist"),
        (["--rounds", "1"], "rounds"),
        (["--precision", "float8"], "precision"),
    ],
)
def test_bad_input(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_plan_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "roberta-base", "--plan", "--method", "sam_parser", "--rows", "4096"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1.00" in lines[1]
    assert "[U @ (diag(sigma) @ V.T)]" in lines[1]
    assert any("U @ diag(sigma) @ V.T" in line for line in lines)
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "roberta-base"])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_a_compiled_arm_takes_the_same_step() -> None:
    chosen = arms.arms(["lora"], rank=2, compiled=True)
    assert [str(arm) for arm in chosen[len(chosen) // 2 :]] == [
        "frozen floor (compiled)",
        "lora (compiled)",
        "lora (peft, compiled)",
        "full fine-tuning (compiled)",
    ]
    shape = bert_block(32, batch=2, tokens=8)
    base = shape.model(BenchPrecision.float32)
    losses = []
    for arm in (Arm("ours", "lora", 2), Arm("ours", "lora", 2, compiled=True)):
        torch.manual_seed(0)
        bench = build(arm, base, shape, BenchPrecision.float32)
        if not arm.compiled:  # compiling takes a step
            bench.step()
        losses.append(bench.loss().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_command_lists_the_choices_of_a_benchmark() -> None:
    assert get_args(command.PrecisionName) == tuple(one.value for one in BenchPrecision)
    assert get_args(command.CurveName) == tuple(one.value for one in Curve)
