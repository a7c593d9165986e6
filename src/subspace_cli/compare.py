"""`subspace compare CONFIG [key=value ...]`: a grid of runs with tuned learning rates."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compare_view import duration, watching
from .console import show, table_of
from .refuse import UsageError

if TYPE_CHECKING:
    from subspace_tuning.comparison.database import Database
    from subspace_tuning.comparison.grid import Cell
    from subspace_tuning.comparison.leases import Shard
    from subspace_tuning.comparison.sections import CompareConfig

_SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def compare(
    config: Annotated[str, typer.Argument(help="A YAML file; examples/compare.yaml is one.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the file's values, such as tuning.rates.tries=3."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each in its own process.")] = 1,
    shard: Annotated[
        str, typer.Option(help="Only this share of the cells, such as 1/4: for several calls in a cluster's queue.")
    ] = "1/1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and what is left of it; run nothing.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what has failed.")] = False,
    take: Annotated[
        list[Path] | None,
        typer.Option(help="Take finished runs from another store, such as a shard's; repeat for several."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folders of finished runs, with their adapters, in STORE.kept.")
    ] = False,
) -> None:
    """Compare methods and formulas with tuned rates.

    Rows of the comparison are methods, formulas, peft's configs and full fine-tuning, on tasks, models and budgets,
    over several seeds. The learning rate of each is tuned on held-out training rows with the same number of tries.
    Results are kept in one file. Run the same command again to go on after an interruption, or beside itself to share
    the work; no run is made twice. Exit code 1: some runs have failed.
    """
    import warnings

    from subspace_tuning.comparison import config as configs
    from subspace_tuning.comparison.grid import cells
    from subspace_tuning.training.runtime import quiet

    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    part = _shard_of(shard)
    settings = configs.load(config, overrides or [])
    with quiet(bars=False):
        found = cells(settings)
    if dry_run:
        _dry_run(settings, found, part, workers)
        return
    _run(settings, found, part, workers, take or [], retry=retry, keep=keep)


def _shard_of(text: str) -> Shard:
    from subspace_tuning.comparison.leases import Shard

    match = _SHARD.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text!r} is not a share such as 1/4: the first of four")
    return Shard(int(match[1]) - 1, int(match[2]))


def _run(
    settings: CompareConfig,
    found: list[Cell],
    shard: Shard,
    workers: int,
    others: list[Path],
    *,
    retry: bool,
    keep: bool,
) -> None:
    from subspace_tuning.comparison.database import Database
    from subspace_tuning.comparison.planning import place
    from subspace_tuning.comparison.progress import failures
    from subspace_tuning.comparison.taking import take_runs
    from subspace_tuning.comparison.work import Working, tidy, work
    from subspace_tuning.comparison.workers import work_apart

    taken = [Database(path, create=False) for path in others]
    database = Database(settings.store, create=True)
    for other in taken:
        take_runs(database, other)
    place(database, settings, found, retry=retry)
    how = Working(shard, keep)
    tidy(database, keep=keep)
    with watching(database, shard, workers):
        if workers == 1:
            work(database, how)
        else:
            work_apart(database, how, workers)
    _summary(database, shard)
    if failed := failures(database, shard):
        typer.echo(f"\n{len(failed)} failed; --retry runs them again:")
        for one in failed:
            typer.echo(f"  {one}")
        raise typer.Exit(1)


def _dry_run(settings: CompareConfig, found: list[Cell], shard: Shard, workers: int) -> None:
    """Plan the comparison in a copy of the store, so that the store stays as it is."""
    from subspace_tuning.comparison.database import Database
    from subspace_tuning.comparison.planning import place
    from subspace_tuning.comparison.progress import progress, seconds_left

    store = Path(settings.store).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store"
        if store.exists():
            Database(store, create=False).copy(copy)
        database = Database(copy, create=True)
        place(database, settings, found)
        state = progress(database, shard)
    _grid([cell for number, cell in enumerate(found) if number % shard.count == shard.index])
    left = seconds_left(state, state, 0.0, workers)
    typer.echo(f"\n{state.total:,} runs, {state.done:,} of them done, {state.failed:,} failed, {state.left:,} left")
    typer.echo(f"time left: {'known once a run is done' if left is None else duration(left)}")


def _grid(found: list[Cell]) -> None:
    table = table_of("row", "method", "task", "model", figures=["budget", "trained", "to the budget", "rate"])
    for cell in found:
        budget = ["-", f"{cell.trained:,}", "-"]
        if cell.budget is not None:
            budget = [f"{cell.budget:,}", f"{cell.trained:,}", f"{cell.trained - cell.budget:+,}"]
        table.add_row(cell.row, cell.method, cell.task, cell.model, *budget, f"{cell.around:g}")
    show(table)


def _summary(database: Database, shard: Shard) -> None:
    from subspace_tuning.comparison.store import Store

    table = table_of("row", "task", "model", figures=["budget", "trained", "rate", "seeds", "mean score"])
    found = [cell for number, cell in enumerate(Store(database.path).cells()) if number % shard.count == shard.index]
    for cell in found:
        table.add_row(*_summary_of(cell))
    show(table)
    if any(cell["edge"] for cell in found):
        typer.echo("\n* the best rate is at the edge of all that were tried")


def _summary_of(cell: dict[str, Any]) -> list[str]:
    budget = "-" if cell["budget"] is None else f"{cell['budget']:,}"
    rate = "-" if cell["rate"] is None else f"{cell['rate']:g}{'*' if cell['edge'] else ''}"
    score = "-" if cell["score"] is None else f"{cell['score']:.4f}"
    return [cell["row"], cell["task"], cell["model"], budget, f"{cell['trained']:,}", rate, f"{cell['seeds']}", score]
