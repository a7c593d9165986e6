"""`subspace evaluate RUN --data FILE`: the figures of a run on other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import hush_libraries

RUN = "The folder of a finished run, or its adapter."
BASE = "The base model, if it is no longer where the run found it."
BATCH = "Rows per forward pass."


def evaluate(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    data: Annotated[
        str,
        typer.Option("--data", "-d", help="Rows with labels: a file, a folder, or a hub's name.", show_default=False),
    ],
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help=BATCH)] = 32,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON.")] = None,
) -> None:
    """Score what a run has trained on other rows.

    They have the columns of the run's own rows; of data with several splits the test is taken.
    """
    from ..files import check_file, write_json
    from ..training.runtime import quiet
    from ..training.use import cut_of, evaluate, finished
    from .predict import tell_cut

    hush_libraries()
    if output is not None:
        output = check_file(output)
    with quiet(bars=False):
        made = finished(run, base)
        rows = made.task.read(data)
        figures, seen = evaluate(made, rows, batch_size)
        cut = cut_of(made, seen)
    tell_cut(cut, len(rows), made.max_length)
    if output is not None:
        write_json(output, {"run": str(run), "data": data, "rows": len(rows), "cut": cut, **figures})
    width = max(map(len, ("rows", *figures)))
    typer.echo(f"{'rows':{width}}  {len(rows):,}")
    for name, figure in figures.items():
        typer.echo(f"{name:{width}}  {figure:.4f}")
