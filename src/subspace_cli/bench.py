"""`subspace bench`: the cost of a training step, compared with the frozen floor and with peft."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from .console import show, table_of
from .progress import Bar, progress_bar

if TYPE_CHECKING:
    from subspace_tuning.bench.settings import ModelShape

# The values of bench.choices, which would import torch.
PrecisionName = Literal["float32", "autocast", "bfloat16"]
CurveName = Literal["rows", "width", "rank", "adapters"]


def bench(
    shape: Annotated[
        str, typer.Option("--shape", "-s", help="a: MiniLM, b: RoBERTa width, c: a Llama block pair.")
    ] = "a",
    precision: Annotated[
        PrecisionName, typer.Option(help="float32; autocast to bfloat16; or frozen weights in bfloat16.")
    ] = "float32",
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
        CurveName | None, typer.Option(help="Instead of one table: how a step grows with this.", show_default=False)
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure each arm's peak memory.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also run each arm compiled by torch.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file for the results.")] = Path("bench.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Measure what a training step of each method costs.

    The cost is compared with the frozen floor, peft's own version and full fine-tuning. The frozen floor is the same
    model with frozen weights, and the gradient propagated from the loss to the embeddings. All arms run in one process,
    one step of each in turn; a ratio is the median over the rounds with its 95 percent interval. Run the command again
    to resume an interrupted curve.
    """
    import torch

    from subspace_tuning.bench.arms import check, default_methods
    from subspace_tuning.bench.settings import shape_of
    from subspace_tuning.files import check_file, write_json
    from subspace_tuning.jobs.units import measured
    from subspace_tuning.provenance import provenance
    from subspace_tuning.training.runtime import threads as computing_with

    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    output = check_file(output, overwrite)
    chosen = shape_of(shape)
    check(method or [])
    job: dict[str, Any] = {"precision": precision, "rounds": rounds}
    with computing_with(threads), progress_bar() as bar:
        if curve is None:
            size = {"rank": None, "budget": budget} if budget else {"rank": rank, "budget": None}
            job |= {"shape": chosen.title, **size, "methods": method or default_methods(), "memory": memory}
            job |= {"compiled": compiled}
            kind, units, measure = "rows", {"table": chosen}, partial(_table, bar, job)
        else:
            job |= {"curve": curve, "methods": method or ["ssb", "lora", "dora"]}
            kind, units, measure = "points", _pieces(curve, job["methods"]), partial(_curve, bar, job)
        with measured(output, job | {"threads": torch.get_num_threads()}, units, measure) as parts:
            found = [one for part in parts.values() for one in part[kind]]
            write_json(output, provenance() | job | {kind: found})
    show(_drawn_table(job, found) if curve is None else _drawn_curve(job, found))
    typer.echo(f"saved in {output}")


def _table(bar: Bar, job: dict[str, Any], shape: ModelShape) -> dict[str, Any]:
    from subspace_tuning.bench.arms import arms
    from subspace_tuning.bench.choices import BenchPrecision
    from subspace_tuning.bench.measure import WARM_UP, table

    matching = (shape, job["budget"]) if job["budget"] else None
    chosen = arms(job["methods"], job["rank"], matching, job["compiled"])
    on_progress = partial(bar.one_of, "measuring", WARM_UP + job["rounds"])
    rows = table(shape, chosen, BenchPrecision(job["precision"]), job["rounds"], job["memory"], on_progress)
    return {"rows": [row.plain() for row in rows]}


def _drawn_table(job: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    columns = ("ms", "to the floor", "95 %", "to peft", "saved MiB", "GFLOP", "operations", "build s", "trained")
    size = f"budget {job['budget']}" if job["budget"] else f"rank {job['rank']}"
    title = f"{job['shape']}, {job['precision']}, {size}, {job['rounds']} rounds"
    shown = table_of("arm", figures=(*columns, *(("peak MiB",) if job["memory"] else ())), title=title)
    for row in rows:
        median, low, high = row["to_floor"]
        figures = [
            f"{row['seconds'] * 1e3:.1f}",
            f"{median:.3f}",
            f"{low:.2f}-{high:.2f}",
            "" if row["to_peft"] is None else f"{row['to_peft'][0]:.3f}",
            f"{row['saved_mib']:.1f}",
            f"{row['gflops']:.1f}",
            f"{row['operations']:,}",
            f"{row['build_seconds']:.2f}",
            f"{row['trainable']:,}",
        ]
        shown.add_row(row["arm"], *figures, *([f"{row['peak_mib']:.0f}"] if job["memory"] else []))
    return shown


def _pieces(name: str, methods: list[str]) -> dict[str, Any]:
    """Return the units of a curve: its values, or the methods for many adapters, which accumulate."""
    from subspace_tuning.bench.choices import Curve
    from subspace_tuning.bench.curves import CURVES

    curve = Curve(name)
    return {str(piece): piece for piece in (methods if curve is Curve.adapters else CURVES[curve])}


def _curve(bar: Bar, job: dict[str, Any], piece: Any) -> dict[str, Any]:
    from subspace_tuning.bench.choices import BenchPrecision, Curve
    from subspace_tuning.bench.curves import CURVES, growth, many_adapters
    from subspace_tuning.bench.measure import WARM_UP

    curve, names, rounds = Curve(job["curve"]), job["methods"], job["rounds"]
    if curve is Curve.adapters:
        on_progress = partial(bar.one_of, "adapters", len(names) * max(CURVES[curve]))
        return {"points": list(many_adapters(piece, rounds, on_progress))}
    on_progress = partial(bar.one_of, curve.value, len(CURVES[curve]) * (WARM_UP + rounds))
    return {"points": growth(curve, piece, names, BenchPrecision(job["precision"]), rounds, on_progress)}


def _drawn_curve(job: dict[str, Any], points: list[dict[str, Any]]) -> Table:
    values = list(dict.fromkeys(point["value"] for point in points))
    shown = table_of("arm", figures=[f"{value:,}" for value in values], title=f"{job['curve']}, {job['precision']}")
    for arm in dict.fromkeys(point["arm"] for point in points):
        own = {point["value"]: point for point in points if point["arm"] == arm}
        shown.add_row(arm, *(_point(own[value]) for value in values))
    return shown


def _point(point: dict[str, Any]) -> str:
    milliseconds = f"{point['seconds'] * 1e3:.1f} ms"
    return f"{milliseconds} ({point['to_floor'][0]:.2f})" if "to_floor" in point else milliseconds
