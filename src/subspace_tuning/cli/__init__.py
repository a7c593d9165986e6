"""The command `subspace`. What it needs beyond the core is looked for when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..extras import needs
from .refuse import drawn, message_of

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    What the operating system refuses and files that cannot be read count as bad input; ``refuse.message_of`` says which
    errors these are. On a terminal the error of a formula has more lines. Any other error is a fault of the code and
    shows its traceback.

    Args:
        arguments: the words after `subspace`; None takes the process's own.
    """
    try:
        needs("the command", "cli")
        from .app import run

        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        shown = drawn(error) if sys.stderr.isatty() else None
        print(f"subspace: {shown or message}", file=sys.stderr)
        sys.exit(2)
    if code == _INTERRUPTED:  # typer itself turns an interruption within a command into this code
        print("subspace: interrupted", file=sys.stderr)
    sys.exit(code)
