"""`subspace bench`: what a training step costs beside the frozen floor and beside peft."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..bench.choices import Curve, Precision
from .console import show, table_of
from .progress import progress_bar


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
    turn; a ratio is the median over the rounds with its 95 percent interval. An interrupted curve goes on when the
    command is given again.
    """
    from ..bench.arms import check, default_methods
    from ..bench.settings import shape_of
    from ..files import check_file
    from ..training.runtime import threads as computing_with

    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    output = check_file(output, overwrite)
    shape_of(shape)
    check(method or [])
    with computing_with(threads):
        if curve is None:
            names = method or default_methods()
            _table(output, shape, precision, names, rank, budget, rounds, memory, compiled)
        else:
            _curve(output, curve, precision, method or ["ssb", "lora", "dora"], rounds)
    typer.echo(f"saved in {output}")


def _table(
    output: Path,
    shape: str,
    precision: Precision,
    names: list[str],
    rank: int,
    budget: str | None,
    rounds: int,
    memory: bool,
    compiled: bool,
) -> None:
    import torch

    from ..bench.arms import arms
    from ..bench.measure import WARM_UP, table
    from ..bench.settings import shape_of
    from ..files import write_json
    from ..jobs import measured
    from ..provenance import circumstances

    chosen = shape_of(shape)
    every = arms(names, rank, None if budget is None else (chosen, budget), compiled)
    job = {
        "shape": chosen.title,
        "precision": precision.value,
        "rank": rank if budget is None else None,
        "budget": budget,
        "rounds": rounds,
    }

    def measure(unit: None) -> dict[str, Any]:
        with progress_bar() as bar:
            told = partial(bar.one_of, "measuring", WARM_UP + rounds)
            return {"rows": [row.plain() for row in table(chosen, every, precision, rounds, memory, told)]}

    description = job | {"arms": list(map(str, every)), "memory": memory, "threads": torch.get_num_threads()}
    with measured(output, description, {"table": None}, measure) as found:
        size = f"rank {rank}" if budget is None else f"budget {budget}"
        show(_shown(f"{chosen.title}, {precision.value}, {size}, {rounds} rounds", found["table"]["rows"], memory))
        write_json(output, circumstances() | job | found["table"])


def _shown(title: str, rows: list[dict[str, Any]], memory: bool) -> Table:
    columns = ("ms", "to the floor", "95 %", "to peft", "saved MiB", "GFLOP", "build s", "trained")
    shown = table_of("arm", figures=(*columns, *(("peak MiB",) if memory else ())), title=title)
    for row in rows:
        median, low, high = row["to_floor"]
        figures = [
            f"{row['seconds'] * 1e3:.1f}",
            f"{median:.3f}",
            f"{low:.2f}-{high:.2f}",
            "" if row["to_peft"] is None else f"{row['to_peft'][0]:.3f}",
            f"{row['saved_mib']:.1f}",
            f"{row['gflops']:.1f}",
            f"{row['build_seconds']:.2f}",
            f"{row['trainable']:,}",
        ]
        shown.add_row(row["arm"], *figures, *([f"{row['peak_mib']:.0f}"] if memory else []))
    return shown


def _curve(output: Path, curve: Curve, precision: Precision, names: list[str], rounds: int) -> None:
    import torch

    from ..bench.curves import CURVES, growth, many_adapters
    from ..bench.measure import WARM_UP
    from ..files import write_json
    from ..jobs import measured
    from ..provenance import circumstances

    values = CURVES[curve]
    job = {"curve": curve.value, "precision": precision.value, "rounds": rounds}
    with progress_bar() as bar:

        def adapters(name: str) -> dict[str, Any]:
            told = partial(bar.one_of, "adapters", len(names) * max(values))
            return {"points": list(many_adapters(name, rounds, told))}

        def grown(value: int) -> dict[str, Any]:
            told = partial(bar.one_of, curve.value, len(values) * (WARM_UP + rounds))
            return {"points": growth(curve, value, names, precision, rounds, told)}

        units: dict[str, Any] = (
            {name: name for name in names} if curve is Curve.adapters else {str(v): v for v in values}
        )
        description = job | {"methods": names, "threads": torch.get_num_threads()}
        measure = adapters if curve is Curve.adapters else grown
        with measured(output, description, units, measure) as found:
            points = [point for one in found.values() for point in one["points"]]
            write_json(output, circumstances() | job | {"points": points})
    shown = table_of("arm", figures=[f"{value:,}" for value in values], title=f"{curve.value}, {precision.value}")
    for arm in dict.fromkeys(point["arm"] for point in points):
        own = {point["value"]: point for point in points if point["arm"] == arm}
        shown.add_row(arm, *(_point(own[value]) for value in values))
    show(shown)


def _point(point: dict[str, Any]) -> str:
    milliseconds = f"{point['seconds'] * 1e3:.1f} ms"
    return f"{milliseconds} ({point['to_floor'][0]:.2f})" if "to_floor" in point else milliseconds
