"""`subspace serve RUN...`: a local page and an API in which several runs answer side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import BASE


def serve(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, or their adapters.", show_default=False),
    ],
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="The most rows of a call of the model.")] = 16,
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
) -> None:
    """Try the adapters of several runs side by side.

    They answer on a local page and over HTTP, and share one base model and one task. Requests that arrive while the
    model is busy share its next call, whatever their adapters. Ctrl-C ends the server. It has no passwords: whoever
    reaches the address can use it.
    """
    from subspace_tuning.serve.app import app_of
    from subspace_tuning.serve.choices import choices_of
    from subspace_tuning.serve.server import listening, serve, url_of
    from subspace_tuning.training.runtime import quiet

    with listening(host, port) as listener, quiet(bars=False):
        choices = choices_of(runs, base)
        typer.echo(f"{', '.join(choices.by_name)} on {choices.base}: {url_of(listener)}")
        serve(app_of(choices, max_batch), listener)
