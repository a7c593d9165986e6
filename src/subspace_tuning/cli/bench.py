"""`subspace bench`: what a training step costs beside the frozen floor and beside peft."""

from __future__ import annotations

import json
import warnings
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..errors import SubspaceError
from .console import wide_console

if TYPE_CHECKING:
    from ..experiments.bench.measure import Row
    from ..experiments.bench.settings import Precision


class Format(str, Enum):
    """The number format of a step."""

    float32 = "float32"
    autocast = "autocast"
    bfloat16 = "bfloat16"


class Curve(str, Enum):
    """What grows."""

    rows = "rows"
    width = "width"
    rank = "rank"
    adapters = "adapters"


def bench(
    shape: Annotated[
        str, typer.Option("--shape", "-s", help="a: MiniLM, b: RoBERTa width, c: a Llama block pair.")
    ] = "a",
    precision: Annotated[
        Format, typer.Option(help="float32; autocast to bfloat16; or frozen weights in bfloat16.")
    ] = Format.float32,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="A method; repeat for several. Default: all.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="The rank, or the width of a bottleneck.")] = 8,
    rounds: Annotated[int, typer.Option(min=2, help="Steps of each arm.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's choice.")] = None,
    curve: Annotated[
        Curve | None, typer.Option(help="Instead of one table: how a step grows with this.", show_default=False)
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also each arm's peak memory.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file for the figures.")] = Path("bench.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Measure training steps of every method against the frozen floor, peft's own version and full fine-tuning.

    The frozen floor is the same model with frozen weights, the gradient flowing from the embeddings to the loss. All
    arms run in one process, a step of each in turn; a ratio is the median over the rounds with its 95 percent interval.
    """
    from ..experiments.bench import settings
    from ..experiments.bench.arms import check, default_methods

    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    if output.exists() and not overwrite:
        raise SubspaceError(f"{output} exists: choose another --output, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise SubspaceError(f"the folder of {output} does not exist")
    settings.shape_of(shape)
    check(method or [])
    with settings.threads(threads):
        number_format = settings.Precision[precision.value]
        if curve is None:
            names = method or default_methods()
            found = _table(shape, number_format, names, rank, rounds, memory)
        else:
            found = _curve(curve.value, number_format, method or ["ssb", "lora", "dora"], rounds)
        _save(output, {**_surroundings(), **found})
    typer.echo(f"saved in {output}")


def _table(shape: str, precision: Precision, names: list[str], rank: int, rounds: int, memory: bool) -> dict[str, Any]:
    from ..experiments.bench.arms import arms
    from ..experiments.bench.measure import WARM_UP, table
    from ..experiments.bench.settings import shape_of

    chosen = shape_of(shape)
    with _Bar("measuring", WARM_UP + rounds) as told:
        rows = table(chosen, arms(names, rank), precision, rounds, memory, told)
    title = f"{chosen.title}, {precision.value}, rank {rank}, {rounds} rounds"
    wide_console().print(_shown(title, rows, memory))
    return {
        "shape": chosen.title,
        "precision": precision.value,
        "rank": rank,
        "rounds": rounds,
        "rows": [row.plain() for row in rows],
    }


def _shown(title: str, rows: list[Row], memory: bool) -> Table:
    shown = _titled(title)
    columns = ("ms", "to the floor", "95 %", "to peft", "saved MiB", "GFLOP", "build s", "trained")
    for column in (*columns, *(("peak MiB",) if memory else ())):
        shown.add_column(column, justify="right")
    for row in rows:
        figures = [
            f"{row.seconds * 1e3:.1f}",
            f"{row.to_floor.median:.3f}",
            f"{row.to_floor.low:.2f}-{row.to_floor.high:.2f}",
            "" if row.to_peft is None else f"{row.to_peft.median:.3f}",
            f"{row.saved_mib:.1f}",
            f"{row.gflops:.1f}",
            f"{row.build_seconds:.2f}",
            f"{row.trainable:,}",
        ]
        shown.add_row(str(row.arm), *figures, *([f"{row.peak_mib:.0f}"] if row.peak_mib is not None else []))
    return shown


def _curve(curve: str, precision: Precision, names: list[str], rounds: int) -> dict[str, Any]:
    from ..experiments.bench.curves import CURVES, growth, many_adapters
    from ..experiments.bench.measure import WARM_UP

    values = CURVES[curve]
    points: list[dict[str, Any]] = []
    if curve == "adapters":
        with _Bar("adapters", len(names) * max(values)) as told:
            points += [point for name in names for point in many_adapters(name, rounds, told)]
    else:
        with _Bar(curve, len(values) * (WARM_UP + rounds)) as told:
            points += growth(curve, names, precision, rounds, told)
    shown = Table(
        title=f"{curve}, {precision.value}", box=None, pad_edge=False, header_style="bold", title_justify="left"
    )
    shown.add_column("arm", no_wrap=True)
    for value in values:
        shown.add_column(f"{value:,}", justify="right")
    for arm in dict.fromkeys(point["arm"] for point in points):
        own = {point["value"]: point for point in points if point["arm"] == arm}
        shown.add_row(arm, *(_point(own[value]) for value in values))
    wide_console().print(shown)
    return {"curve": curve, "precision": precision.value, "rounds": rounds, "points": points}


def _titled(title: str) -> Table:
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("arm", no_wrap=True)
    return table


def _point(point: dict[str, Any]) -> str:
    milliseconds = f"{point['seconds'] * 1e3:.1f} ms"
    return f"{milliseconds} ({point['to_floor'][0]:.2f})" if "to_floor" in point else milliseconds


class _Bar:
    """A bar on stderr; gives the function that moves it on."""

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda: self.bar.advance(self.task)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def _surroundings() -> dict[str, Any]:
    from ..experiments.record import machine, versions

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def _save(path: Path, found: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
