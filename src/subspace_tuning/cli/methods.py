"""`subspace methods [NAME]`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .console import wide_console


def methods(
    name: Annotated[str | None, typer.Argument(help="Tell all about one method.", show_default=False)] = None,
) -> None:
    """List the methods: formula, category, parameters per matrix, where they go, who invented them."""
    from .. import methods as catalogue

    if name is not None:
        _describe(catalogue.get(name))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "formula phi(W)", "category", "parameters", "citation"):
        table.add_column(column, no_wrap=True)
    for known in catalogue.every():
        table.add_row(known.name, str(known.formula), known.category, known.count or "", known.citation)
    wide_console().print(table)
    typer.echo("\nW is n x m, the rank is r, k = min(n, m). `subspace methods NAME` tells all about one.")


def _describe(known: object) -> None:
    from ..methods import Method

    assert isinstance(known, Method)
    formula = known.formula
    rows = {
        "method": known.name,
        "formula": str(formula),
        "category": known.category,
        "parameters": f"{known.count} per matrix",
        "placement": ", ".join(known.placement),
        "merges": "yes" if formula.is_linear else "no: there is a nonlinearity between the factors",
        "learning rate": f"{known.learning_rate:g}",
        "includes": ", ".join(known.includes) or "-",
        "citation": known.citation,
    }
    for start, at in known.starts_for().items():
        shape = " x ".join(formula.shapes[start]) or "a number"
        rows[f"factor {start}"] = f"{shape}, starts at {at}"
    width = max(map(len, rows))
    for key, value in rows.items():
        typer.echo(f"{key:{width}}  {value}")
    typer.echo(f"\n{known.description}")
