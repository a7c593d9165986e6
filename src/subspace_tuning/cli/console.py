"""How tables are printed."""

from __future__ import annotations

from rich.console import Console

_WIDTH = 120


def wide_console() -> Console:
    """Return a console that does not squeeze a table where there is no terminal to fit it into."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
