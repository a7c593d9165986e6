"""The command `subspace`. Each subcommand has a file beside this one and imports what is heavy only when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from . import (
    bench,
    convert,
    demo,
    evaluate,
    explain,
    extract,
    inspect,
    merge,
    methods,
    params,
    predict,
    recommend,
    reference,
    train,
)
from .refuse import drawn, told

app = typer.Typer(
    name="subspace",
    add_completion=False,
    rich_markup_mode=None,  # plain help is wrapped between words, and cuts no option
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("merge")(merge.merge)
app.command("methods")(methods.methods)
app.command("explain")(explain.explain)
app.command("params")(params.params)
app.command("extract")(extract.extract)
app.command("convert")(convert.convert)
app.command("combine")(convert.combine)
app.command("inspect")(inspect.inspect)
app.command("recommend")(recommend.recommend)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.command("reference")(reference.reference)


_INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"subspace-tuning {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _help(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tuning methods as formulas over a frozen weight."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    What the operating system refuses and files that cannot be read count as bad input; ``refuse.told`` says which
    errors these are. On a terminal the error of a formula has more lines. Any other error is a fault of the code and
    shows its traceback.

    Args:
        arguments: the words after `subspace`; None takes the process's own.
    """
    try:
        with warnings.catch_warnings():  # commands silence those of other libraries
            code = app(args=None if arguments is None else list(arguments), prog_name="subspace", standalone_mode=False)
            sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = told(error)
        if message is None:
            raise
        shown = drawn(error) if sys.stderr.isatty() else None
        print(f"subspace: {shown or message}", file=sys.stderr)
        sys.exit(2)
    if code == _INTERRUPTED:  # typer itself turns an interruption within a command into this code
        print("subspace: interrupted", file=sys.stderr)
    sys.exit(code or 0)
