"""How tables are printed."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_UNLIMITED, _TEXT_WIDTH = 10_000, 80
_PADDING = 2  # of a column


def silence_libraries() -> None:
    """Keep quiet what the libraries have to say to their own developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def table_of(*columns: str, figures: Sequence[str] = (), title: str | None = None) -> Table:
    """Return an empty table with columns of words, whose first one is never wrapped, and then columns of figures."""
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def text_width() -> int:
    """Return how wide text may be: the terminal, COLUMNS where that is set, else 80."""
    return shutil.get_terminal_size((_TEXT_WIDTH, 0)).columns


def show(table: Table) -> None:
    """Print a table in the width of the terminal, or in COLUMNS where that is set; piped, as wide as it is.

    Cells are wrapped between words, and no word is ever cut: a terminal too narrow for that gets longer lines.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _UNLIMITED
    unlimited = console.options.update_width(_UNLIMITED)
    for column in table.columns:
        sizes = [console.measure(cell, options=unlimited) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    # rich reduces columns below their least width rather than leave its own width.
    least = sum((column.min_width or 0) + _PADDING for column in table.columns)
    console.width = max(console.width, least)
    console.print(table, crop=False)


def shortened(names: Sequence[str]) -> list[str]:
    """Return dotted names without the words that all of them begin with."""
    words = [name.split(".") for name in names]
    common = 0
    while len(words) > 1 and all(len(own) > common + 1 and own[common] == words[0][common] for own in words):
        common += 1
    return [".".join(own[common:]) for own in words]
