"""The command `subspace`. Each subcommand has a file beside this one and imports what is heavy only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from ..errors import SubspaceError
from . import bench, convert, demo, extract, inspect, methods, params, recommend, train

app = typer.Typer(
    name="subspace",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("methods")(methods.methods)
app.command("params")(params.params)
app.command("extract")(extract.extract)
app.command("convert")(convert.convert)
app.command("combine")(convert.combine)
app.command("inspect")(inspect.inspect)
app.command("recommend")(recommend.recommend)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)


@app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    """Fine-tuning methods as formulas over a frozen weight."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 bad input (told in one line on stderr), 130 interrupted.

    Args:
        arguments: the words after `subspace`; None takes the process's own.
    """
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="subspace", standalone_mode=False)
    except SubspaceError as error:
        _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("subspace: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # A mistake in the words themselves. typer carries its own copy of click and has no public name for its errors.
        if not hasattr(error, "format_message"):
            raise
        _refuse(error.format_message())
    sys.exit(code or 0)


def _refuse(message: str) -> NoReturn:
    print(f"subspace: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
