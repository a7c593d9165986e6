"""`subspace params MODEL`: how much each method trains."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import SubspaceError
from .console import hush_libraries, show, table_of


def params(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or minilm.", show_default=False)],
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only this method; give it again for more.")
    ] = None,
    formula: Annotated[list[str] | None, typer.Option("--formula", "-f", help="Also a formula of your own.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank, or the width of a bottleneck.")] = 8,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Instead of a rank: match 300k or 0.3permille parameters.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's rows and budgets beside the paper's own figures.")
    ] = False,
) -> None:
    """Count what each method trains in a model.

    The model is built without its weights.
    """
    hush_libraries()
    if paper:
        if method or formula or budget:
            raise SubspaceError("--paper has its own rows: leave --method, --formula and --budget out")
        _paper(model)
        return
    _methods(model, method or [], formula or [], rank, budget)


def _methods(model: str, names: list[str], formulas: list[str], rank: int, budget: str | None) -> None:
    from .. import methods as catalogue
    from ..counting.count import Count, budget_in, count_hosted, count_in, matched
    from ..models.meta import architecture_of
    from ..tuner import SubspaceConfig

    every = not names and not formulas
    if every:
        names = [*(known.name for known in catalogue.every()), *catalogue.HOSTED]
    # All are read before the first is counted, so that a wrong name is reported at once.
    configs = [name if name in catalogue.HOSTED else SubspaceConfig(method=name, r=rank) for name in names]
    configs += [SubspaceConfig(formula=text, r=rank) for text in formulas]
    architecture = architecture_of(model)
    wanted = 0 if budget is None else budget_in(architecture, budget)
    figures = ["rank", "matrices", "trainable", "per mille", *([] if budget is None else ["to the budget"])]
    table = table_of("method", figures=figures)
    total, left_out = 0, []
    for config in configs:
        try:
            if isinstance(config, str):
                counted: Count = count_hosted(architecture, config, rank)
            else:
                if budget is not None:
                    config = matched(architecture, config, wanted)
                counted = count_in(architecture, config)
        except SubspaceError as error:
            if not every:
                raise
            left_out.append(f"{config if isinstance(config, str) else config.method}: {error}")
            continue
        own = not isinstance(config, str) and counted.method == "formula"
        rank_shown = "-" if counted.rank is None else str(counted.rank)
        cells = [f"{counted.matrices}", f"{counted.trainable:,}", f"{counted.per_mille:.3f}"]
        if budget is not None:
            cells.append(f"{counted.trainable - wanted:+,}")
        table.add_row(
            str(config.resolved.formula) if own and not isinstance(config, str) else counted.method,
            rank_shown,
            *cells,
        )
        total = counted.total
    show(table)
    typer.echo(f"\nof {total:,} parameters; the head is part of them and is not counted as trainable")
    for line in left_out:
        typer.echo(f"left out: {line}")


def _paper(model: str) -> None:
    from ..counting.paper import compare

    figures = ["budget r", "trainable", "per mille", "paper", "difference", "agrees"]
    table = table_of("row of the paper", figures=figures)
    total = agreeing = rows = 0
    for found in compare(model):
        table.add_row(
            found.row.name,
            "-" if found.budget is None else str(found.budget),
            f"{found.counted.trainable:,}",
            f"{found.counted.per_mille:.3f}",
            f"{found.paper:.2f}",
            f"{found.difference:+.3f}",
            "yes" if found.agrees else "NO",
        )
        total, rows, agreeing = found.counted.total, rows + 1, agreeing + found.agrees
    show(table)
    typer.echo(f"\nof {total:,} parameters with a head of two labels, which is not counted as trainable")
    typer.echo(f"{agreeing} of {rows} agree within 0.03 or half a percent of the paper's figure, whichever is larger")
