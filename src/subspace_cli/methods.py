"""`subspace methods [NAME]`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import show, table_of
from .inner import inner_rings


def methods(
    name: Annotated[str | None, typer.Argument(help="Describe one method in detail.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole catalogue as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the formulas in LaTeX.")] = False,
) -> None:
    """List the methods with their formulas, parameters and sources."""
    with inner_rings():
        _list(name, markdown, latex)


def _list(name: str | None, markdown: bool, latex: bool) -> None:
    from subspace_tuning import methods as catalogue

    if name is not None and not (markdown or latex):
        known = catalogue.named(name)
        _print(known.facts(), known.description)
        return
    chosen = list(catalogue.every()) if name is None else [catalogue.get(name)]
    if markdown:
        from subspace_tuning.methods.catalogue import page

        typer.echo(page() if name is None else page(chosen), nl=False)
        return
    if latex:
        from subspace_tuning.algebra.latex import latex as in_latex

        for known in chosen:
            typer.echo(
                f"{known.name}: {in_latex(known.formula.expression)}"
                if name is None
                else in_latex(known.formula.expression)
            )
        return
    table = table_of("method", "formula phi(W)", "parameters", "citation")
    listed = list(catalogue.listed())
    for category in dict.fromkeys(one.category for one in listed):
        table.add_row(f"{category}:", style="dim")
        for one in listed:
            if one.category == category:
                table.add_row(one.name, str(one.formula), one.count or "", one.citation)
    show(table)
    typer.echo("\nW is n x m, the rank is r, k = min(n, m); a mask has p entries, and q directions are chosen.")
    typer.echo("`subspace methods NAME` describes one in detail.")


def _print(rows: dict[str, str], description: str) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        typer.echo(f"{key:{width}}  {value}")
    typer.echo(f"\n{description}")
