"""`subspace push RUN REPOSITORY`: a run's result on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import RUN

_BASE = "The base model's name on the hub, if the run's was a local folder."


def push(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    repository: Annotated[str, typer.Argument(help="The repository on the hub: owner/name.", show_default=False)],
    base: Annotated[str | None, typer.Option("--base", help=_BASE)] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Push a run's result to a hub, with its model card.

    The token comes from `hf auth login` or HF_TOKEN; HF_ENDPOINT selects another hub.
    """
    from subspace_tuning.training.push import push

    typer.echo(push(run, repository, base, private=private))
