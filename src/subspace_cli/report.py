"""`subspace report STORE`: the tables and the page of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import show, table_of


def report(
    store: Annotated[Path, typer.Argument(help="The store that `subspace compare` has written.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the files; by default STORE.report.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The row from which differences are taken; by default the first one.")
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(help="A YAML file of claims; by default those of the paper whose rows are all there."),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="md, tex, csv or parquet; repeat for several. By default all.")
    ] = None,
    items: Annotated[
        bool, typer.Option("--items", help="Also intervals over new test items, by a bootstrap: seconds per row.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="The title of the page; by default the store's name.")] = None,
) -> None:
    """Write the tables and the page of a comparison.

    They have its scores, differences, ranks, and verdicts on claims. Open index.html in a browser; it needs no other
    file and no network. A comparison may still be running: its finished runs are reported.
    """
    from subspace_tuning.extras import needs

    needs("subspace report", "compare")
    from subspace_tuning.report.comparison import write_report
    from subspace_tuning.statistics import FORMATS, read_claims

    wanted = None if claims is None else read_claims(claims)
    folder = store.with_name(f"{store.name}.report") if output is None else output
    files, judged = write_report(
        store, folder, format or FORMATS, baseline=baseline, claims=wanted, items=items, title=title
    )
    if judged:
        table = table_of("claim", "verdict", "figure")
        for one in judged:
            table.add_row(one.claim.claim, one.verdict, one.figure)
        show(table)
    names = ", ".join(dict.fromkeys(file.stem for file in files[:-1]))
    typer.echo(f"{files[-1]}: the page\n{folder}: {names} as {', '.join(format or FORMATS)}")
