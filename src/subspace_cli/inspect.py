"""`subspace inspect MODEL`: what an adapter did there, or how a method would be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import shortened, show, table_of
from .progress import progress_bar
from .refuse import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

COLUMNS = (
    "change",
    "stable rank",
    "eff. rank",
    "overlap left",
    "overlap right",
    "overlap by chance",
    "reconstr. share",
    "reconstr. by chance",
    "intruders",
)
COSINE = "cosine to the other"


def inspect(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or minilm.", show_default=False)],
    adapter: Annotated[
        Path | None, typer.Argument(help="An adapter of it; peft's LoRA, too.", show_default=False)
    ] = None,
    against: Annotated[Path | None, typer.Option("--against", help="A second adapter to compare with.")] = None,
    leading: Annotated[
        int, typer.Option("--leading", "-k", min=1, help="The number of directions in W's leading subspace.")
    ] = 16,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write a .csv, .parquet or .json file.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="A folder for figures of spectra, angles and shares.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show how each matrix is evaluated, and the alternatives.")
    ] = False,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="For --plan: the method; by default lora.")
    ] = None,
    formula: Annotated[str | None, typer.Option("--formula", "-f", help="For --plan: a formula instead.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="For --plan: the rank.")] = 8,
    budget: Annotated[
        str | None, typer.Option("--budget", help="For --plan: a parameter budget, 300k or 0.3permille.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="For --plan: rows at once, batch x tokens.")] = 2048,
    evaluation: Annotated[bool, typer.Option("--eval", help="For --plan: only the forward pass.")] = False,
) -> None:
    """Show what an adapter did to a model, or a method's plan.

    The table has one line per matrix. An overlap is the mean squared cosine of the angles between the leading singular
    subspaces of the change and of W, beside that of random subspaces. The reconstruction share is the part of the
    change within W's leading subspace; the rest is extension. Intruders are leading singular vectors of phi(W) that are
    close to none of W's.

    With --plan, show instead how a method would be evaluated in the model, which is built without its weights. A cost
    is an estimate in floating-point operations that includes moving numbers; the first plan of each size is the one
    used.
    """
    if plan:
        if adapter is not None:
            raise UsageError("--plan is for a method: leave the adapter out")
        _plan(model, method, formula, rank, budget, rows, evaluation)
        return
    if adapter is None:
        raise UsageError("give an adapter of the model, or --plan to see how matrices are evaluated")
    _diagnose(model, adapter, against, leading, output, figures)


def _diagnose(
    model: str, path: Path, against: Path | None, leading: int, output: Path | None, figures: Path | None
) -> None:
    from subspace_tuning.adapters.diagnose import frame
    from subspace_tuning.adapters.files import read_adapter
    from subspace_tuning.extras import needs
    from subspace_tuning.files import check_folder
    from subspace_tuning.models.checkpoint import Checkpoint
    from subspace_tuning.report.figures import Spectra, draw
    from subspace_tuning.report.tables import check_table, write_table

    file = None if output is None else check_table(output)
    if figures is not None:
        needs("drawing", "report", "matplotlib")
        check_folder(figures)
    base, found = Checkpoint(model), read_adapter(path)
    other = None if against is None else read_adapter(against)
    spectra = Spectra(len(found.layers))
    with progress_bar() as bar:
        data = frame(base, found, leading, other, spectra.add, lambda: bar.one_of("matrices", len(found.layers)))
    show(_table(data, COSINE if other else None))
    typer.echo(f"\n{found.method.name}: {found.method.formula}; leading: {leading} directions of W")
    typer.echo(
        "intruders: leading left vectors of phi(W) close to no single one of W / outside the span of W's leading ones"
    )
    if file is not None:
        write_table(file, data)
        typer.echo(f"table: {file}")
    if figures is not None:
        for figure in draw(figures, data, spectra, found.method.name):
            typer.echo(f"figure: {figure}")


def _table(data: pd.DataFrame, besides: str | None) -> Table:
    table = table_of("matrix", figures=[*COLUMNS, *([besides] if besides else [])])
    for name, (_, row) in zip(shortened(list(data["module"])), data.iterrows(), strict=True):
        cells = [
            f"{row['change']:.4f}",
            f"{row['stable_rank']:.1f}",
            f"{row['effective_rank']:.1f}",
            f"{row['left_overlap']:.3f}",
            f"{row['right_overlap']:.3f}",
            f"{row['left_random']:.3f}/{row['right_random']:.3f}",
            f"{row['reconstruction_share']:.3f}",
            f"{row['reconstruction_share_random']:.4f}",
            f"{row['intruders']}/{row['intruders_subspace']}",
        ]
        table.add_row(name, *cells, *([f"{row['other_cosine']:.3f}"] if besides else []))
    return table


def _plan(
    model: str, method: str | None, formula: str | None, rank: int, budget: str | None, rows: int, evaluation: bool
) -> None:
    from subspace_tuning.counting.count import budget_in, matched
    from subspace_tuning.counting.plans import plans_in
    from subspace_tuning.models.meta import architecture_of
    from subspace_tuning.tuner import SubspaceConfig

    if method is not None and formula is not None:
        raise UsageError("give --method or --formula, not both")
    config = SubspaceConfig(method=None if formula else method or "lora", formula=formula, r=rank)
    architecture = architecture_of(model)
    if budget is not None:
        config = matched(architecture, config, budget_in(architecture, budget))
    table = table_of("n x m", "matrices", "way", figures=("GFLOP", "to the best"))
    table.add_column("evaluation")
    for found in plans_in(architecture, config, rows, not evaluation):
        best = found.ways[0].cost
        for number, way in enumerate(found.ways):
            size = f"{found.sizes.n} x {found.sizes.m}" if number == 0 else ""
            count = f"{len(found.modules)}" if number == 0 else ""
            cells = (way.name, f"{way.cost / 1e9:.3f}", f"{way.cost / best:.2f}", str(way.expression))
            table.add_row(size, count, *cells, style=None if number == 0 else "dim")
    show(table)
    what = "forward" if evaluation else "a training step"
    sized = f", r = {config.r}" if config.resolved.formula.has_rank else ""
    typer.echo(f"\n{config.resolved.name}: {config.resolved.formula}{sized}; {rows} rows, {what}")
