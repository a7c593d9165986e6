"""`subspace inspect MODEL`: what an adapter does there."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import SubspaceError
from .console import wide_console


def inspect(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or minilm.", show_default=False)],
    plan: Annotated[bool, typer.Option("--plan", help="How each matrix is evaluated, and the alternatives.")] = False,
    method: Annotated[str | None, typer.Option("--method", "-m", help="The method; lora by default.")] = None,
    formula: Annotated[str | None, typer.Option("--formula", "-f", help="A formula of your own instead.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank, or the width of a bottleneck.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows that meet a matrix at once: batch x tokens.")] = 2048,
    evaluation: Annotated[bool, typer.Option("--eval", help="The forward pass alone.")] = False,
) -> None:
    """Show how a method would be evaluated in a model, which is built without its weights.

    A cost is an estimate in floating point operations, in which moving a number counts as well; the first line of each
    size is what runs.
    """
    from ..experiments.count import architecture_of
    from ..experiments.plans import plans_in
    from ..tuner import SubspaceConfig

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    if not plan:
        raise SubspaceError("say what to look at: --plan shows how each matrix is evaluated")
    if method is not None and formula is not None:
        raise SubspaceError("give --method or --formula, not both")
    config = SubspaceConfig(method=None if formula else method or "lora", formula=formula, r=rank)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("n x m", "matrices", "way"):
        table.add_column(column, no_wrap=True)
    table.add_column("GFLOP", justify="right")
    table.add_column("to the best", justify="right")
    table.add_column("evaluation", overflow="fold")
    for found in plans_in(architecture_of(model), config, rows, not evaluation):
        best = found.ways[0].cost
        for number, way in enumerate(found.ways):
            size = f"{found.sizes.n} x {found.sizes.m}" if number == 0 else ""
            count = f"{len(found.modules)}" if number == 0 else ""
            cells = (way.name, f"{way.cost / 1e9:.3f}", f"{way.cost / best:.2f}", Text(str(way.expression)))
            table.add_row(size, count, *cells, style=None if number == 0 else "dim")
    wide_console().print(table)
    what = "forward" if evaluation else "a training step"
    typer.echo(f"\n{config.resolved.name}: {config.resolved.formula}; {rows} rows, {what}")
