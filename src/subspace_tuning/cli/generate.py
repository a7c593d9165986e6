"""`subspace generate RUN --text TEXT`: what a run writes for new texts, in a way of its own choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import BASE, BATCH, RUN
from .predict import FILE, OUTPUT, TEXTS, ask


def generate(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    text: TEXTS = None,
    file: FILE = None,
    output: OUTPUT = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Tokens of a text, instead of the run's own.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, help="Texts followed at a time, instead of the run's own.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="Draw tokens, the more freely the higher; 0 draws none.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from the likeliest tokens of this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="By which tokens are drawn.")] = 0,
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help=BATCH)] = 32,
) -> None:
    """Write a text for each new text, by a run of task generation.

    Without options this is what `subspace predict` says. Texts that are drawn are the same for the same seed and batch
    size.
    """
    import transformers

    transformers.set_seed(seed)
    given = {"max_new_tokens": max_new_tokens, "num_beams": beams, "temperature": temperature, "top_p": top_p}
    ask(run, text, file, output, base, batch_size, {name: value for name, value in given.items() if value is not None})
