"""`subspace methods [NAME]`: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import show, table_of

if TYPE_CHECKING:
    from ..methods import Hosted, Method


def methods(
    name: Annotated[str | None, typer.Argument(help="Tell all about one method.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole catalogue as a page.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="The formulas in LaTeX.")] = False,
) -> None:
    """List the methods: formulas, parameters, who invented them."""
    from .. import methods as catalogue

    if name is not None and name in catalogue.HOSTED and not (markdown or latex):
        _describe_hosted(catalogue.HOSTED[name])
        return
    chosen = list(catalogue.every()) if name is None else [catalogue.get(name)]
    if markdown:
        from ..methods.catalogue import page

        typer.echo(page() if name is None else page(chosen), nl=False)
        return
    if latex:
        from ..algebra.latex import latex as in_latex

        for known in chosen:
            typer.echo(
                f"{known.name}: {in_latex(known.formula.expression)}"
                if name is None
                else in_latex(known.formula.expression)
            )
        return
    if name is not None:
        _describe(chosen[0])
        return
    table = table_of("method", "formula phi(W)", "parameters", "citation")
    listed: list[Method | Hosted] = [*catalogue.every(), *catalogue.hosted()]
    for category in dict.fromkeys(one.category for one in listed):
        table.add_row(f"{category}:", style="dim")
        for one in listed:
            if one.category == category:
                table.add_row(one.name, str(one.formula), one.count or "", one.citation)
    show(table)
    typer.echo("\nW is n x m, the rank is r, k = min(n, m); a mask has p entries, and q directions are chosen.")
    typer.echo("`subspace methods NAME` tells all about one.")


def _describe_hosted(known: Hosted) -> None:
    rows = {
        "method": known.name,
        "formula": known.formula,
        "category": f"{known.category}, {known.mode}",
        "parameters": known.count,
        "runs as": f"peft's {known.config}",
        "learning rate": f"{known.learning_rate:g}",
        "citation": known.citation,
    }
    _print(rows, known.description)


def _describe(known: Method) -> None:
    from ..methods.registry import SELECTIONS

    formula = known.formula
    rows = {
        "method": known.name,
        "formula": str(formula),
        "category": known.category + (f", {known.mode}" if known.mode else ""),
        "parameters": f"{known.count} per matrix",
        "placement": ", ".join(known.placement),
        "merges": "yes" if formula.is_linear else "no: phi(W) is not one matrix",
        "learning rate": f"{known.learning_rate:g}",
        "includes": ", ".join(known.includes) or "-",
        "citation": known.citation,
    }
    for start, at in known.starts_for().items():
        shape = " x ".join(formula.shapes[start]) or "a number"
        rows[f"factor {start}"] = f"{shape}, starts at {at}"
    if known.selection:
        rows["chooses"] = SELECTIONS[known.selection]
    if known.schedule:
        rows["schedule"] = known.schedule
    if known.pattern:
        rows["pattern"] = f"{'+'.join(known.pattern)}, weight {known.pattern_weight:g}"
    _print(rows, known.description)


def _print(rows: dict[str, str], description: str) -> None:
    width = max(map(len, rows))
    for key, value in rows.items():
        typer.echo(f"{key:{width}}  {value}")
    typer.echo(f"\n{description}")
