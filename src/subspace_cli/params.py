"""`subspace params MODEL`: how much each method trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import show, table_of
from .refuse import UsageError

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig


def params(
    model: Annotated[str, typer.Argument(help="A hub name, a local folder, or minilm.", show_default=False)],
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only this method; repeat for several.")
    ] = None,
    formula: Annotated[list[str] | None, typer.Option("--formula", "-f", help="Also a formula of your own.")] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank, or the width of a bottleneck.")] = 8,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", help="Adapt this parameter, such as experts.down_proj; repeat for several."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Instead of a rank: match 300k or 0.3permille parameters.")
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=0, help="Count the embeddings of this many new tokens, too.")
    ] = 0,
    steps: Annotated[
        bool, typer.Option("--steps", help="Also the learning rate that follows from each formula.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Compare with the paper's figures, for its rows and budgets.")
    ] = False,
) -> None:
    """Count what each method trains in a model.

    The model is built without its weights.
    """
    if paper:
        if method or formula or budget or parameter or new_tokens or steps:
            raise UsageError(
                "--paper has its own rows: leave --method, --formula, --parameter, --budget, --new-tokens and --steps "
                "out"
            )
        _paper(model)
        return
    added = {"target_parameters": parameter or None, "trainable_token_indices": [*range(new_tokens)] or None}
    _methods(model, method or [], formula or [], rank, budget, steps, added)


def _methods(
    model: str,
    names: list[str],
    formulas: list[str],
    rank: int,
    budget: str | None,
    steps: bool,
    added: dict[str, Any],
) -> None:
    from subspace_tuning.counting.count import budget_in, count_of
    from subspace_tuning.errors import SubspaceError
    from subspace_tuning.models.meta import architecture_of

    every = not names and not formulas
    configs = _configs(names, formulas, rank, added)
    architecture = architecture_of(model)
    wanted = None if budget is None else budget_in(architecture, budget)
    rate_cells = _rates(model, architecture, wanted) if steps else lambda label, config: []
    figures = ["rank", "matrices", "trainable", "per mille", *([] if budget is None else ["to the budget"])]
    table = table_of("method", figures=[*figures, *(["derived rate", "constant", "default"] if steps else [])])
    total, left_out = 0, []
    for label, config in configs:
        try:
            counted = count_of(architecture, config, label, wanted)
        except SubspaceError as error:
            if not every:
                raise
            left_out.append(f"{label}: {error}")
            continue
        cells = [f"{counted.matrices}", f"{counted.trainable:,}", f"{counted.per_mille:.3f}"]
        if wanted is not None:
            cells.append(f"{counted.trainable - wanted:+,}")
        cells += rate_cells(label, config)
        table.add_row(label, "-" if counted.rank is None else str(counted.rank), *cells)
        total = counted.total
    show(table)
    typer.echo(f"\nof {total:,} parameters, including the head, which is not counted as trainable")
    for line in left_out:
        typer.echo(f"left out: {line}")


def _configs(names: list[str], formulas: list[str], rank: int, added: dict[str, Any]) -> list[tuple[str, PeftConfig]]:
    """Return a config for each method and formula, for every method if none is named.

    All are parsed before the first is counted, so that a wrong name is reported at once.
    """
    from subspace_tuning import methods as catalogue
    from subspace_tuning.tuner import SubspaceConfig
    from subspace_tuning.tuner.hosting import config_of

    if not names and not formulas:
        names = [known.name for known in catalogue.listed()]
    fields = {name: {"method": name, "r": rank} | ({} if name in catalogue.HOSTED else added) for name in names}
    own = [SubspaceConfig(formula=text, r=rank, **added) for text in formulas]
    return [
        *((name, config_of(given, {})) for name, given in fields.items()),
        *((str(config.resolved.formula), config) for config in own),
    ]


def _rates(model: str, architecture: PretrainedConfig, wanted: int | None) -> Callable[[str, PeftConfig], list[str]]:
    """Return a function that returns the derived rate of a method, its constant, and which of them is its default."""
    from subspace_tuning import methods as catalogue
    from subspace_tuning.counting.count import matched
    from subspace_tuning.counting.rates import rates_in
    from subspace_tuning.errors import SubspaceError
    from subspace_tuning.tuner import SubspaceConfig

    found = rates_in(model, architecture)
    if not found.from_weights:
        typer.echo(f"the weights of {model} are not at hand: rates follow from its shapes alone\n")

    def cells(label: str, config: PeftConfig) -> list[str]:
        if not isinstance(config, SubspaceConfig):
            return ["-", f"{catalogue.named(label).learning_rate:.1e}", "constant"]
        method, derived = config.resolved, "-"
        with suppress(SubspaceError):
            derived = f"{found.derived(config if wanted is None else matched(architecture, config, wanted)):.1e}"
        uses_derived = method.derives_rate and derived != "-"
        return [derived, f"{method.learning_rate:.1e}", "derived" if uses_derived else "constant"]

    return cells


def _paper(model: str) -> None:
    from subspace_tuning.counting.paper import compare

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
