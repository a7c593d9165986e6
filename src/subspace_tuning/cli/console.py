"""How tables are printed."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Column, Table

_WIDTH, _TEXT_WIDTH = 120, 80


def hush_libraries() -> None:
    """Keep quiet what the libraries have to say to their own developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def text_width() -> int:
    """Return how wide text may be: the terminal, COLUMNS where that is set, else 80."""
    return shutil.get_terminal_size((_TEXT_WIDTH, 0)).columns


def show(table: Table) -> None:
    """Print a table in the width of the terminal, in COLUMNS where that is set, else 120 wide.

    Columns that must not wrap, such as names, keep their width; the others break their words before any is cut.
    """
    console = Console(stderr=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(width=_WIDTH)
    unlimited = console.options.update_width(10_000)
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(console.measure(cell, options=unlimited).maximum for cell in _cells(column))
        else:
            column.overflow = "fold"
    console.print(table, crop=False)


def _cells(column: Column) -> list[RenderableType]:
    return [column.header, *column.cells]


def shortened(names: Sequence[str]) -> list[str]:
    """Return dotted names without the words that all of them begin with."""
    words = [name.split(".") for name in names]
    common = 0
    while len(words) > 1 and all(len(own) > common + 1 and own[common] == words[0][common] for own in words):
        common += 1
    return [".".join(own[common:]) for own in words]
