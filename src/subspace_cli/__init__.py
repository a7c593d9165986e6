"""The command `subspace`.

It is a separate package because importing ``subspace_tuning`` imports torch, peft and transformers. Help and usage
errors need none of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from .refuse import UsageError, drawn, message_of

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    Errors of the operating system and unreadable files count as bad input; see ``refuse.message_of``. On a terminal a
    formula error has more lines. Any other error is a bug and shows its traceback.

    Args:
        arguments: the words after `subspace`; by default the process's own.
    """
    try:
        missing = [name for name in ("rich", "typer") if find_spec(name) is None]
        if missing:
            raise UsageError(f"the command needs {', '.join(missing)}: pip install 'subspace-tuning[cli]'")
        from .app import run

        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe
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
