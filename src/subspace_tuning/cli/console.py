"""How tables are printed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from rich.console import Console

_WIDTH = 120


def hush_libraries() -> None:
    """Keep quiet what the libraries have to say to their own developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def wide_console() -> Console:
    """Return a console that does not squeeze a table where there is no terminal to fit it into."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def shortened(names: Sequence[str]) -> list[str]:
    """Return dotted names without the words that all of them begin with."""
    words = [name.split(".") for name in names]
    common = 0
    while len(words) > 1 and all(len(own) > common + 1 and own[common] == words[0][common] for own in words):
        common += 1
    return [".".join(own[common:]) for own in words]
