"""`subspace explain FORMULA [MODEL]`: what a formula is, and what it could do without."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from .console import text_width
from .refuse import UsageError

if TYPE_CHECKING:
    from subspace_tuning.methods import Explanation


def explain(
    formula: Annotated[
        str | None, typer.Argument(help="A formula or the name of a method; without it: --watch.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Argument(help="Also count in this model: a hub name, a local folder, or minilm.", show_default=False),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", help="The shape n x m of the matrix, such as 768x3072.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", "-r", help="The rank, or the width of a bottleneck.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="For the plan: rows at once, batch x tokens.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print all fields as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Read formulas line by line; an empty line ends.")] = False,
) -> None:
    """Explain a formula: factors, count, relatives, cost, advice.

    A formula whose start is refused is explained, too, beginning with the problem.
    """
    if watch or (formula is None and sys.stdin.isatty()):
        if formula is not None or as_json:
            raise UsageError("--watch reads formulas line by line: leave the formula and --json out")
        _watch(shape, rank, rows)
        return
    if formula is None:
        raise UsageError("give a formula or the name of a method, or --watch to read formulas line by line")
    if model is not None and shape is not None:
        raise UsageError("give a model or --shape, not both: a model has its own shapes")
    found = _explained(formula, shape, rank, rows) if model is None else _in_model(formula, model, rank, rows)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    from subspace_tuning.methods.rendering import rendered

    typer.echo(rendered(found, text_width()))
    if model is not None and found.model is None:
        typer.echo(f"\nnot counted in {model}: with this start the adapter is refused")


def _explained(formula: str, shape: str | None, rank: int, rows: int) -> Explanation:
    from subspace_tuning.methods import explain

    return explain(formula, _numbers(shape), rank, rows)


def _in_model(formula: str, name: str, rank: int, rows: int) -> Explanation:
    from subspace_tuning.counting.explained import explain_in
    from subspace_tuning.methods.explanation import method_of
    from subspace_tuning.models.meta import architecture_of
    from subspace_tuning.tuner import SubspaceConfig

    method = method_of(formula)
    architecture = architecture_of(name)
    found = _explained(formula, None, rank, rows)
    if found.problem:  # no layer can be made
        return found
    by_name = method.name == formula
    config = SubspaceConfig(method=formula if by_name else None, formula=None if by_name else formula, r=rank)
    return explain_in(architecture, config, rows)


def _numbers(shape: str | None) -> tuple[int, int] | None:
    if shape is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", shape)
    if match is None:
        raise UsageError(f"--shape {shape!r} is not two numbers such as 768x3072")
    return int(match[1]), int(match[2])


def _watch(shape: str | None, rank: int, rows: int) -> None:
    """Print for each line the shapes, or the error."""
    _explained("lora", shape, rank, rows)  # refuse numbers that are out of range at once, not line by line
    for line in _lines():
        typer.echo(_answer(line, shape, rank, rows))


def _answer(line: str, shape: str | None, rank: int, rows: int) -> str:
    from subspace_tuning.errors import SubspaceError
    from subspace_tuning.methods.rendering import brief

    try:
        return brief(_explained(line, shape, rank, rows), text_width())
    except SubspaceError as error:
        return textwrap.fill(str(error), text_width(), break_on_hyphens=False)


def _lines() -> Iterator[str]:
    """Yield lines up to an empty one, from a pipe or from a terminal with editing and history."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # missing on Windows
            import readline  # noqa: F401
    while True:
        try:
            line = input("phi(W) = " if terminal else "").strip()
        except EOFError:
            if terminal:
                typer.echo()
            return
        if not line:
            return
        yield line
