"""The subcommands of `subspace`. Each has its own file, and imports heavy packages only when it runs."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import (
    bench,
    compare,
    convert,
    demo,
    evaluate,
    explain,
    extract,
    generate,
    inspect,
    merge,
    methods,
    params,
    predict,
    push,
    recommend,
    reference,
    report,
    serve,
    train,
)

_FOR_DEVELOPERS = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")  # they log on import

app = typer.Typer(
    name="subspace",
    add_completion=False,
    rich_markup_mode=None,  # plain help wraps between words and never truncates an option
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("generate")(generate.generate)
app.command("merge")(merge.merge)
app.command("push")(push.push)
app.command("methods")(methods.methods)
app.command("explain")(explain.explain)
app.command("params")(params.params)
app.command("extract")(extract.extract)
app.command("convert")(convert.convert)
app.command("combine")(convert.combine)
app.command("inspect")(inspect.inspect)
app.command("recommend")(recommend.recommend)
app.command("bench")(bench.bench)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("reference")(reference.reference)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"subspace-tuning {importlib.metadata.version('subspace-tuning')}")
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


def run(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code. Usage errors and errors of the command are raised.

    Args:
        arguments: the words after `subspace`; by default the process's own.
    """
    words = None if arguments is None else list(arguments)
    for name in _FOR_DEVELOPERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
            code: Any = app(args=words, prog_name="subspace", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return code or 0
