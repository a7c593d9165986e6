"""`subspace train CONFIG [key=value ...]`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from subspace_tuning.training.run import Outcome


def _template(wanted: bool) -> None:
    if wanted:
        from subspace_tuning.training.template import template

        typer.echo(template(), nl=False)
        raise typer.Exit


def _preset(task: str | None) -> None:
    if task is not None:
        from subspace_tuning.training.template import preset

        typer.echo(preset(task), nl=False)
        raise typer.Exit


def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file; --template prints one. Not needed if the overrides suffice.", show_default=False
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the file's values, such as training.seed=1."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an earlier run in the output folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    template: Annotated[
        bool,
        typer.Option("--template", callback=_template, is_eager=True, help="Print a file with every key, and exit."),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", callback=_preset, is_eager=True, help="Print the paper's config for a GLUE task, and exit."
        ),
    ] = None,
) -> None:
    """Fine-tune a model on your own files or on a GLUE task.

    Run the same command again to resume an interrupted run from its last checkpoint; a finished run is not repeated.
    `subspace train --template > run.yaml` writes a config to start from; `subspace reference` explains its keys.
    """
    from subspace_tuning.errors import ReportedElsewhereError
    from subspace_tuning.training import config as configs
    from subspace_tuning.training.processes import is_first, joined, together
    from subspace_tuning.training.run import run

    alone = "=" in config and not Path(config).exists()
    words = [*([config] if alone else ()), *(overrides or ())]
    try:
        with joined():
            with together():
                settings = configs.load(None if alone else config, words)
            outcome = run(settings, overwrite=overwrite, progress=not quiet)
            if is_first():
                _report(outcome)
    except ReportedElsewhereError:
        raise typer.Exit(2) from None


def _report(outcome: Outcome) -> None:
    record, counts = outcome.record, outcome.record["parameters"]
    if outcome.repeated:
        typer.echo(f"Finished before on {record['date']}; --overwrite runs it again.")
    tokens = f", new tokens {new:,}" if (new := counts.get("new_tokens")) else ""
    rows = {
        "task": record["task"],
        "rows": ", ".join(f"{part['rows']:,} {split}" for split, part in record["data"].items()),
        "method": record["method"],
        **_before(record),
        record["metric"]: f"{record['score']:.4f}",
        "constant prediction": f"{record['baseline_score']:.4f}",
        "trained parameters": f"{counts['adapter']:,} ({counts['per_mille']:.3f} per mille){tokens}, "
        f"head {counts['head']:,}",
        "precision": _precision(record),
        "steps": f"{record['steps']:,}",
        "seconds": f"{record['seconds']:.1f}",
        "saved in": str(outcome.folder),
    }
    if (found := record.get("orthogonality")) and _constrained(record["config"]["adapter"]):
        left, right = (sum(one[name] for one in found.values()) / len(found) for name in ("A", "B"))
        rows["orthogonality"] = f"|A^T A - I| {left:.3f}, |B B^T - I| {right:.3f}: means, each matrix's in run.json"
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:{width}}  {value}")


def _constrained(adapter: dict[str, Any]) -> bool:
    """Return whether a pattern constrains the factors: the run's, or the method's own."""
    from subspace_tuning import methods

    known = methods.find(adapter["method"])
    return bool(adapter["pattern"] or (known and known.pattern))


def _before(record: dict[str, Any]) -> dict[str, str]:
    """Return the score before the first step, if training.eval_on_start asked for it."""
    figures = record.get("before")
    return {f"{record['metric']} before": f"{figures[record['metric']]:.4f}"} if figures else {}


def _precision(record: dict[str, Any]) -> str:
    """Return the format of the products, and how to override it if it was chosen automatically."""
    precision: str = record["precision"]
    if record["config"]["training"]["precision"] == "auto" and precision != "float32":
        precision += ", which this machine has instructions for; training.precision=float32 overrides"
    return precision
