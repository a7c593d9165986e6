"""`subspace recommend MODEL`: methods and ranks, from evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import show, table_of
from .progress import progress_bar
from .refuse import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


_LENGTH = 128  # tokens of a row


def recommend(
    model: Annotated[str, typer.Argument(help="The base model: a folder, a hub name, or minilm.", show_default=False)],
    budget: Annotated[str, typer.Option("--budget", help="Parameters: 300k, 1.5M or 0.3permille.")] = "5permille",
    tuned: Annotated[str | None, typer.Option("--tuned", help="Evidence: a known fine-tune of the model.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Evidence instead: the gradients of a task.")] = None,
    data: Annotated[str, typer.Option("--data", help="The task's folder, or a hub name.")] = "glue",
    rows: Annotated[int, typer.Option("--rows", min=1, help="The number of training rows for the gradients.")] = 256,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only this method; repeat for several.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write a JSON file.")] = None,
) -> None:
    """Rank methods by how much of a change each can capture.

    The change is that of a known fine-tune, or a small step against the gradients of a few rows. A share of 1 is the
    whole change, over all the matrices that any method adapts. It measures what a method can express, not how well it
    trains.
    """
    from subspace_tuning import methods as catalogue
    from subspace_tuning.adapters.recommend import as_rows, candidates, without_place
    from subspace_tuning.adapters.recommend import recommend as rank_methods
    from subspace_tuning.files import check_file, write_json

    if (tuned is None) == (task is None):
        raise UsageError("give the evidence: --tuned MODEL or --task NAME")
    if output is not None:
        output = check_file(output)
    chosen, slow = ([catalogue.get(name) for name in method], []) if method else candidates()
    for one in chosen:
        if not one.formula.is_linear or one.formula.wraps_norm or one.formula.names_bias:
            raise UsageError(f"method {one.name!r} has no dense phi(W) to rank: {one.formula}")
    base, moves, evidence = _tuned(model, tuned) if tuned is not None else _gradients(model, task or "", data, rows)
    with progress_bar() as bar:
        found = rank_methods(base, moves, budget, chosen, bar.at)
    table = table_of("method", figures=("rank", "parameters", "share of the change", "found"))
    table.add_column("formula")
    for row in found:
        rank = "-" if row.rank is None else f"{row.rank:g}" if row.rank == int(row.rank) else f"{row.rank:.1f}"
        table.add_row(row.method, rank, f"{row.parameters:,}", f"{row.share:.4f}", row.how, row.formula)
    show(table)
    typer.echo(f"\nevidence: {evidence}; {len(moves)} matrices; budget {budget}")
    for name in without_place(base, moves, chosen):
        typer.echo(f"left out: {name} adapts nothing in this model")
    for one in slow:
        typer.echo(f"left out: {one.name} has no closed form, and a search takes long; -m {one.name} ranks it")
    if output is not None:
        write_json(output, {"evidence": evidence, "budget": budget, "methods": as_rows(found)})
        typer.echo(f"saved in {output}")


def _tuned(model: str, tuned: str) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]], str]:
    from subspace_tuning.adapters.recommend import from_tuned
    from subspace_tuning.models.checkpoint import Checkpoint

    other = Checkpoint(tuned)
    return other.model, from_tuned(Checkpoint(model), other), f"the fine-tune {tuned}"


def _gradients(model: str, name: str, data: str, rows: int) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]], str]:
    import transformers

    from subspace_tuning.adapters.recommend import from_gradients
    from subspace_tuning.models.load import load
    from subspace_tuning.models.meta import architecture_of
    from subspace_tuning.tasks import get
    from subspace_tuning.training.runtime import quiet

    task = get(name).for_model(architecture_of(model))
    train = task.load(data, train_rows=rows)["train"]
    transformers.set_seed(0)  # the head is drawn
    length = min(_LENGTH, getattr(architecture_of(model), "max_position_embeddings", _LENGTH))
    with quiet(bars=False):
        base, processor = load(model, task.model_class, task.model_settings, length)
        moves = from_gradients(base, task.batches(train, processor, length, 32), task.objective)
    return base, moves, f"gradients of {len(train)} rows of {name} with a fresh head (seed 0)"
