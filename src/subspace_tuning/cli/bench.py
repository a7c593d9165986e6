"""`subspace bench`: what a training step costs beside the frozen floor and beside peft."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..bench.choices import Curve, Precision
from .console import show, table_of
from .progress import progress_bar

if TYPE_CHECKING:
    from ..bench.measure import Row


def bench(
    shape: Annotated[
        str, typer.Option("--shape", "-s", help="a: MiniLM, b: RoBERTa width, c: a Llama block pair.")
    ] = "a",
    precision: Annotated[
        Precision, typer.Option(help="float32; autocast to bfloat16; or frozen weights in bfloat16.")
    ] = Precision.float32,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A method; repeat for several. Default: all.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="The rank, or the width of a bottleneck.")] = 8,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Instead of one rank: match 300k or 0.3permille parameters.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Steps of each arm.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's choice.")] = None,
    curve: Annotated[
        Curve | None, typer.Option(help="Instead of one table: how a step grows with this.", show_default=False)
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also each arm's peak memory.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also each arm compiled by torch.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file for the figures.")] = Path("bench.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Measure what a training step of each method costs.

    It stands beside the frozen floor, peft's own version and full fine-tuning. The frozen floor is the same model with
    frozen weights, the gradient flowing from the embeddings to the loss. All arms run in one process, a step of each in
    turn; a ratio is the median over the rounds with its 95 percent interval.
    """
    from ..bench.arms import check, default_methods
    from ..bench.settings import shape_of
    from ..files import check_file, written
    from ..provenance import circumstances
    from ..training.runtime import threads as computing_with

    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    output = check_file(output, overwrite)
    shape_of(shape)
    check(method or [])
    with computing_with(threads):
        if curve is None:
            found = _table(shape, precision, method or default_methods(), rank, budget, rounds, memory, compiled)
        else:
            found = _curve(curve, precision, method or ["ssb", "lora", "dora"], rounds)
        with written(output) as file:
            file.write_text(json.dumps(circumstances() | found, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"saved in {output}")


def _table(
    shape: str,
    precision: Precision,
    names: list[str],
    rank: int,
    budget: str | None,
    rounds: int,
    memory: bool,
    compiled: bool,
) -> dict[str, Any]:
    from ..bench.arms import arms
    from ..bench.measure import WARM_UP, table
    from ..bench.settings import shape_of

    chosen = shape_of(shape)
    with progress_bar() as bar:
        told = partial(bar.one_of, "measuring", WARM_UP + rounds)
        matching = None if budget is None else (chosen, budget)
        rows = table(chosen, arms(names, rank, matching, compiled), precision, rounds, memory, told)
    size = f"rank {rank}" if budget is None else f"budget {budget}"
    title = f"{chosen.title}, {precision.value}, {size}, {rounds} rounds"
    show(_shown(title, rows, memory))
    return {
        "shape": chosen.title,
        "precision": precision.value,
        "rank": rank if budget is None else None,
        "budget": budget,
        "rounds": rounds,
        "rows": [row.plain() for row in rows],
    }


def _shown(title: str, rows: list[Row], memory: bool) -> Table:
    columns = ("ms", "to the floor", "95 %", "to peft", "saved MiB", "GFLOP", "operations", "build s", "trained")
    shown = table_of("arm", figures=(*columns, *(("peak MiB",) if memory else ())), title=title)
    for row in rows:
        figures = [
            f"{row.seconds * 1e3:.1f}",
            f"{row.to_floor.median:.3f}",
            f"{row.to_floor.low:.2f}-{row.to_floor.high:.2f}",
            "" if row.to_peft is None else f"{row.to_peft.median:.3f}",
            f"{row.saved_mib:.1f}",
            f"{row.gflops:.1f}",
            f"{row.operations:,}",
            f"{row.build_seconds:.2f}",
            f"{row.trainable:,}",
        ]
        shown.add_row(str(row.arm), *figures, *([f"{row.peak_mib:.0f}"] if row.peak_mib is not None else []))
    return shown


def _curve(curve: Curve, precision: Precision, names: list[str], rounds: int) -> dict[str, Any]:
    from ..bench.curves import CURVES, growth, many_adapters
    from ..bench.measure import WARM_UP

    values = CURVES[curve]
    points: list[dict[str, Any]] = []
    if curve is Curve.adapters:
        with progress_bar() as bar:
            told = partial(bar.one_of, "adapters", len(names) * max(values))
            points += [point for name in names for point in many_adapters(name, rounds, told)]
    else:
        with progress_bar() as bar:
            told = partial(bar.one_of, curve.value, len(values) * (WARM_UP + rounds))
            points += growth(curve, names, precision, rounds, told)
    shown = table_of("arm", figures=[f"{value:,}" for value in values], title=f"{curve.value}, {precision.value}")
    for arm in dict.fromkeys(point["arm"] for point in points):
        own = {point["value"]: point for point in points if point["arm"] == arm}
        shown.add_row(arm, *(_point(own[value]) for value in values))
    show(shown)
    return {"curve": curve.value, "precision": precision.value, "rounds": rounds, "points": points}


def _point(point: dict[str, Any]) -> str:
    milliseconds = f"{point['seconds'] * 1e3:.1f} ms"
    return f"{milliseconds} ({point['to_floor'][0]:.2f})" if "to_floor" in point else milliseconds
