"""`subspace convert` and `subspace combine`: adapters in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import shortened, show, table_of
from .progress import progress_bar
from .refuse import UsageError

if TYPE_CHECKING:
    from subspace_tuning.adapters.adapter import Adapter
    from subspace_tuning.adapters.convert import ConvertedAdapter
    from subspace_tuning.models.checkpoint import Checkpoint

_BASE = "The base model, if the factors alone do not determine the change."
_TO = "A method, a formula, peft-lora, or diffusers-lora."
_SUM = "A method of one low-rank term, peft-lora, or diffusers-lora."
_UNEVEN = "With peft-lora or diffusers-lora: keep each matrix's own rank instead of padding all to one."


def convert(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder; peft's LoRA, too.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help=_TO, show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new adapter's folder.", show_default=False)],
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", min=1, help="The rank; by default the lowest that loses nothing.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help=_BASE)] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="Refuse if a matrix loses more than this share of its change.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
    uneven: Annotated[bool, typer.Option("--uneven", help=_UNEVEN)] = False,
) -> None:
    """Turn an adapter into another method's.

    The conversion is exact if possible; otherwise its error is reported. --to peft-lora writes an adapter that peft
    loads without this package, and --to diffusers-lora a file that a pipeline of diffusers loads.
    """
    from subspace_tuning.adapters.convert import convert_adapter
    from subspace_tuning.adapters.files import check_output, read_adapter

    check_output(output, overwrite)
    found = read_adapter(adapter)
    model = _base(base)
    with progress_bar() as bar:
        result = convert_adapter(found, to, rank, model, lambda: bar.one_of("matrices", len(found.layers)))
    worst = max(result.layers, key=lambda layer: layer.error)
    if tolerance is not None and worst.error > tolerance:
        raise UsageError(
            f"{worst.module} would lose {worst.error:.3g} of its change, more than {tolerance:g}: raise --rank or "
            "--tolerance"
        )
    _finish(result, to, output, overwrite, model, uneven)


def combine(
    adapters: Annotated[list[Path], typer.Argument(help="Two or more adapters.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new adapter's folder.", show_default=False)],
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", help="Comma-separated numbers, one per adapter; by default equal shares."),
    ] = None,
    to: Annotated[str, typer.Option("--to", help=_SUM)] = "lora",
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", min=1, help="The rank; by default the lowest that loses nothing.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help=_BASE)] = None,
    head: Annotated[
        int | None, typer.Option("--head", min=1, help="Whose head to keep where they differ: 1 is the first adapter.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
    uneven: Annotated[bool, typer.Option("--uneven", help=_UNEVEN)] = False,
) -> None:
    """Combine adapters into the weighted sum of their changes."""
    from subspace_tuning.adapters.combine import combine_adapters
    from subspace_tuning.adapters.files import check_output, read_adapter

    check_output(output, overwrite)
    found = [read_adapter(path) for path in adapters]
    numbers = _weights(weights, len(found))
    count = len({module for adapter in found for module in adapter.layers})
    model = _base(base)
    with progress_bar() as bar:
        result = combine_adapters(found, numbers, to, rank, model, head, lambda: bar.one_of("matrices", count))
    _finish(result, to, output, overwrite, model, uneven)


def _base(name: str | None) -> Checkpoint | None:
    from subspace_tuning.models.pipeline import checkpoint_of

    return None if name is None else checkpoint_of(name)


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0 / count] * count
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text!r} are not comma-separated numbers") from None


def _finish(
    result: ConvertedAdapter, to: str, output: Path, overwrite: bool, base: Checkpoint | None, uneven: bool
) -> None:
    from subspace_tuning.adapters.convert import DIFFUSERS_LORA, PEFT_LORA
    from subspace_tuning.adapters.files import write_adapter
    from subspace_tuning.adapters.lora import write_diffusers_lora, write_lora

    adapter: Adapter = result.adapter
    if to == PEFT_LORA:
        write_lora(output, adapter, overwrite, base=base, uneven=uneven)
    elif to == DIFFUSERS_LORA:
        write_diffusers_lora(output, adapter, overwrite, base=base, uneven=uneven)
    else:
        write_adapter(output, adapter, overwrite)
    table = table_of("matrix", figures=("n x m", "rank", "lost", "how"))
    for name, layer in zip(shortened([layer.module for layer in result.layers]), result.layers, strict=True):
        lost = "nothing" if layer.exact else f"{layer.error:.4f}"
        table.add_row(name, f"{layer.n} x {layer.m}", str(layer.r), lost, layer.how)
    show(table)
    summary = (
        "exact to rounding"
        if all(layer.exact for layer in result.layers)
        else (f"at most {result.error:.4f} of a matrix's change is lost")
    )
    typer.echo(f"\n{to}: {adapter.parameters:,} parameters, {summary}\nadapter: {output}")
