"""`subspace demo`: fine-tuning with nothing but packages from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import show, table_of


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the runs and the plot.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[
        int, typer.Option("--seed", help="The seed for the sentences, the head and the order of rows.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Repeat finished runs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Fine-tune a pretrained encoder with three methods.

    One of them is a formula written on the spot. The task: tell acceptable English sentences from unacceptable ones,
    with content words never seen in training.
    """
    from subspace_tuning.extras import needs

    needs("the demo", "demo")
    from subspace_tuning.report.demo import plot
    from subspace_tuning.training.demo import ENTRIES, FIGURE, demo

    results = []
    for entry, result in zip(ENTRIES, demo(output, seed, overwrite=overwrite, progress=not quiet), strict=True):
        results.append(result)
        typer.echo(f"{len(results)} of {len(ENTRIES)}: {entry.title}  {result.formula}")
    figures = ("trainable", "per mille", "accuracy", "majority", "seconds")
    table = table_of("method", "formula phi(W)", figures=figures)
    for result in results:
        scores = (f"{100 * result.accuracy:.1f} %", f"{100 * result.majority:.1f} %", f"{result.seconds:.0f}")
        table.add_row(result.title, result.formula, f"{result.trainable:,}", f"{result.per_mille:.2f}", *scores)
    typer.echo()
    show(table)
    figure = output / FIGURE
    plot(results, figure)
    typer.echo(f"\nplot: {figure}\nadapters: {output}/*/adapter")
