"""Printing tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_UNLIMITED, _TEXT_WIDTH = 10_000, 80
_PADDING = 2  # of a column


def table_of(*columns: str, figures: Sequence[str] = (), title: str | None = None) -> Table:
    """Return an empty table with text columns, the first of which is never wrapped, followed by columns of figures."""
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def text_width() -> int:
    """Return the width for text: COLUMNS if set, otherwise the terminal's width, or 80."""
    return shutil.get_terminal_size((_TEXT_WIDTH, 0)).columns


def show(table: Table) -> None:
    """Print a table in the width of the terminal, or in COLUMNS if set; into a pipe, at full width.

    Cells are wrapped between words, and words are never truncated: a terminal that is too narrow gets longer lines.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _UNLIMITED
    unlimited = console.options.update_width(_UNLIMITED)
    for column in table.columns:
        sizes = [console.measure(cell, options=unlimited) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    # rich shrinks columns below their minimum width rather than exceed the total width.
    least = sum((column.min_width or 0) + _PADDING for column in table.columns)
    console.width = max(console.width, least)
    console.print(table, crop=False)


def shortened(names: Sequence[str]) -> list[str]:
    """Return dotted names without their common prefix."""
    words = [name.split(".") for name in names]
    common = 0
    while len(words) > 1 and all(len(own) > common + 1 and own[common] == words[0][common] for own in words):
        common += 1
    return [".".join(own[common:]) for own in words]
