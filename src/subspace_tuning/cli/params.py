"""`subspace params MODEL`: how much each method trains."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .console import wide_console


def params(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or minilm.", show_default=False)],
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only this method; give it again for more.")
    ] = None,
    formula: Annotated[list[str] | None, typer.Option("--formula", "-f", help="Also a formula of your own.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank, or the width of a bottleneck.")] = 8,
) -> None:
    """Count the trainable parameters of each method in a model, which is built without its weights."""
    from .. import methods as catalogue
    from ..experiments.count import count
    from ..tuner import SubspaceConfig

    names = method or ([] if formula else [known.name for known in catalogue.every()])
    configs = [SubspaceConfig(method=name, r=rank) for name in names]
    configs += [SubspaceConfig(formula=text, r=rank) for text in formula or []]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for column in ("rank", "matrices", "trainable", "per mille"):
        table.add_column(column, justify="right")
    total = 0
    for config, counted in zip(configs, count(model, configs), strict=True):
        shown = config.formula if counted.method == "formula" else counted.method
        rank_shown = "-" if counted.rank is None else str(counted.rank)
        figures = (f"{counted.matrices}", f"{counted.trainable:,}", f"{counted.per_mille:.3f}")
        table.add_row(shown, rank_shown, *figures)
        total = counted.total
    wide_console().print(table)
    typer.echo(f"\nof {total:,} parameters; the head is part of them and is not counted as trainable")
