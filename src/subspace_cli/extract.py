"""`subspace extract BASE TUNED`: the best adapter of a method for a known fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import shortened, show, table_of
from .progress import progress_bar

if TYPE_CHECKING:
    from subspace_tuning.adapters.measures import ReportRow

_LEFT_OUT = 8  # tensors listed on the screen


def extract(
    base: Annotated[str, typer.Argument(help="The frozen model: a folder, a hub name, or minilm.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned model.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter's folder.", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-m", help="A registered method, or a formula.")] = "lora",
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank of every matrix.")] = 16,
    energy: Annotated[
        float | None, typer.Option("--energy", help="Instead: the lowest ranks that keep this share of the change.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Instead: a parameter budget to allocate, such as 500k or 0.3permille."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="A module name suffix; repeat for several.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
) -> None:
    """Find the adapter that comes closest to a fine-tuned model.

    Matrices are read one at a time, so memory holds only one of them. Run the command again to resume an interrupted
    extraction.
    """
    from subspace_tuning.adapters.extract import LEFT_OUT, Extraction, extract
    from subspace_tuning.models.checkpoint import Checkpoint
    from subspace_tuning.tuner import SubspaceConfig

    named = {"method": method} if method.isidentifier() else {"formula": method}
    config = SubspaceConfig(**named, r=rank, alpha=float(rank), target_modules=target)  # type: ignore[arg-type]
    wanted = Extraction(config, energy, budget)
    with progress_bar() as bar:
        rows = extract(Checkpoint(base), Checkpoint(tuned), wanted, output, overwrite=overwrite, on_progress=bar.at)
    _show(rows)
    parameters = sum(row["parameters"] for row in rows)
    typer.echo(
        f"\n{config.resolved.name}: {config.resolved.formula}; {parameters:,} parameters in {len(rows)} matrices"
    )
    typer.echo(f"error of the change over all matrices, each relative to its W: {_whole_error(rows):.4f}")
    lost = json.loads((output / LEFT_OUT).read_text(encoding="utf-8"))
    for one in lost[:_LEFT_OUT]:
        change = "from zero" if one["change"] is None else f"by {one['change']:.4f} of its norm"
        typer.echo(f"left out: {one['tensor']}, {one['numbers']:,} numbers, changed {change}")
    if len(lost) > _LEFT_OUT:
        typer.echo(f"left out: {len(lost) - _LEFT_OUT} more, all of them in {output / LEFT_OUT}")
    typer.echo(f"adapter and report: {output}")


def _show(rows: list[ReportRow]) -> None:
    figures = ("rank", "parameters", "error of W*", "error of the change", "bound", "change", "how")
    table = table_of("matrix", figures=figures)
    for name, row in zip(shortened([row["module"] for row in rows]), rows, strict=True):
        table.add_row(
            name,
            "-" if row["rank"] is None else str(row["rank"]),
            f"{row['parameters']:,}",
            f"{row['relative_error']:.4f}",
            f"{row['change_error']:.4f}",
            "-" if row["lower_bound"] is None else f"{row['lower_bound']:.4f}",
            f"{row['change']:.4f}",
            row["how"],
        )
    show(table)


def _whole_error(rows: list[ReportRow]) -> float:
    """Return the total error relative to the total change, as square roots of sums of squares."""
    whole = sum(row["change"] ** 2 for row in rows)
    lost = sum((row["change_error"] * row["change"]) ** 2 for row in rows)
    return float((lost / whole) ** 0.5) if whole else 0.0
