"""`subspace predict RUN --text TEXT`: a run's predictions for new rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from .console import show, table_of
from .evaluate import BASE, BATCH, RUN
from .refuse import UsageError

_SHOWN = 60  # characters of a text in the table


TEXTS = Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; repeat for several.")]
FILE = Annotated[
    str | None, typer.Option("--file", "-f", help="Instead: rows with the run's columns; labels are ignored.")
]
OUTPUT = Annotated[Path | None, typer.Option("--output", "-o", help="A .csv or .jsonl file for the answers.")]


def predict(
    run: Annotated[Path, typer.Argument(help=RUN, show_default=False)],
    text: TEXTS = None,
    file: FILE = None,
    output: OUTPUT = None,
    base: Annotated[str | None, typer.Option("--base", help=BASE)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help=BATCH)] = 32,
) -> None:
    """Predict the labels of new texts.

    Labels are given by name, with their probabilities. Without --output the answers are printed as a table.
    """
    ask(run, text, file, output, base, batch_size)


def ask(
    run: Path,
    text: Sequence[str] | None,
    file: str | None,
    output: Path | None,
    base: str | None,
    batch_size: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Print or write a run's answers for new rows; ``options`` override those of the run's task."""
    if bool(text) == (file is not None):
        raise UsageError("give texts with --text, or rows with --file")
    from subspace_tuning.training.runtime import quiet
    from subspace_tuning.training.use import cut_of, finished, outputs_of

    if output is not None:
        output = _checked(output)
    for number, one in enumerate(text or (), start=1):
        if not one.strip():
            raise UsageError(f"--text number {number} has no text")
    with quiet(bars=False):
        made = finished(run, base, options=options)
        rows = made.task.rows_of(text) if text else made.task.read(str(file), labelled=False)
        seen = outputs_of(made, rows, batch_size, output)
        cut = cut_of(made, seen)
    tell_cut(cut, len(rows), made.max_length)
    answers = made.task.answers(seen)
    if output is None:
        _print(answers)
    else:
        _write(output, answers)
        typer.echo(f"{len(answers):,} rows: {output}")


def tell_cut(cut: int, count: int, length: int) -> None:
    """Print on stderr how many rows are truncated."""
    if cut:
        typer.echo(f"{cut} of the {count} rows are longer than {length} tokens and are truncated", err=True)


def _checked(output: Path) -> Path:
    from subspace_tuning.files import check_file

    if output.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"--output {str(output)!r} is a file that ends in .csv or .jsonl")
    return check_file(output)


def _write(output: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    from subspace_tuning.files import written

    with written(output) as temporary:
        if output.suffix == ".jsonl":
            lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
            temporary.write_text(lines, encoding="utf-8", newline="\n")
        else:
            rows = [_flat(answer) for answer in answers]
            with temporary.open("w", encoding="utf-8", newline="") as file:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                table = csv.DictWriter(file, columns, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)


def _flat(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for a table: a column for each class's probability, lists as JSON."""
    flat: dict[str, Any] = {}
    for name, value in answer.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return flat


def _print(answers: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name, value in answers[0].items() if not _is_nested(value)]
    figures = [name for name in names if name != names[0] and isinstance(answers[0][name], float)]
    words = [name for name in names if name not in figures]
    table = table_of(*words, figures=figures)
    for answer in answers:
        table.add_row(*(_cell(answer[name]) for name in (*words, *figures)))
    show(table)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(map(_is_nested, value)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return " ".join("-" if one is None else _cell(one) for one in value)
    line = " ".join(str(value).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
