"""`subspace merge RUN -o MODEL`: a model without a separate adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import BASE, RUN
from .refuse import UsageError


def merge(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model's folder.", show_default=False)],
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
) -> None:
    """Merge a run's adapter into its base model.

    transformers loads the result without this package. It is read back and compared with the adapter on random inputs,
    and the largest difference is printed.
    """
    from subspace_tuning.files import check_folder
    from subspace_tuning.training.merge import LENGTH, ROWS, merge
    from subspace_tuning.training.runtime import quiet
    from subspace_tuning.training.saved import TASK
    from subspace_tuning.training.use import finished

    output = check_folder(output)
    if output.exists() and any(output.iterdir()):
        if not (output / TASK).is_file():
            raise UsageError(f"{output} is not empty and has no merged model: choose another --output")
        if not overwrite:
            raise UsageError(f"{output} holds a model: choose another --output, or give --overwrite")
    with quiet(bars=False):
        made = finished(run, base, quantise=False)
        if output.resolve() == made.folder.resolve():
            raise UsageError(f"{output} is the run's own result: choose another --output")
        merged = merge(made, output)
    loader = made.task.model_class.__name__
    typer.echo(
        f"largest difference of an output: {merged.difference:.3g}, where the largest is {merged.largest:.3g} ({ROWS} "
        f"drawn rows of up to {LENGTH} tokens)\nmodel: {output}; transformers' {loader} loads it"
    )
