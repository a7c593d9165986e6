"""`subspace evaluate RUN --data FILE`: score a run on other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN = "The folder of a finished run, or its adapter."
BASE = "The base model, if it has moved since the run."
BATCH = "Rows per forward pass."


def evaluate(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    data: Annotated[
        str,
        typer.Option("--data", "-d", help="Rows with labels: a file, a folder, or a hub name.", show_default=False),
    ],
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help=BATCH)] = 32,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the scores as JSON.")] = None,
) -> None:
    """Score the result of a run on other rows.

    They need the columns of the run's own rows. If the data have several splits, the test split is used. With --output,
    scoring by generation resumes after an interruption.
    """
    from subspace_tuning.files import check_file, write_json
    from subspace_tuning.training.runtime import quiet
    from subspace_tuning.training.use import cut_of, evaluate, finished

    from .predict import tell_cut

    if output is not None:
        output = check_file(output)
    with quiet(bars=False):
        made = finished(run, base)
        rows = made.task.read(data)
        figures, seen = evaluate(made, rows, batch_size, output)
        cut = cut_of(made, seen)
    tell_cut(cut, len(rows), made.max_length)
    if output is not None:
        write_json(output, {"run": str(run), "data": data, "rows": len(rows), "cut": cut, **figures})
    width = max(map(len, ("rows", *figures)))
    typer.echo(f"{'rows':{width}}  {len(rows):,}")
    for name, figure in figures.items():
        typer.echo(f"{name:{width}}  {figure:.4f}")
