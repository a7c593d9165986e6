"""The one error that a user can cause: bad input, reported in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SubspaceError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and the way out."""


class ReportedElsewhereError(SubspaceError):
    """Raised in place of an error that another process of the same run raises and reports."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a hint such as ``did you mean lora, flora? known: ...`` for a name that is not among ``known``."""
    names = sorted(known)
    lowered = {known.lower(): known for known in names}
    close = [lowered[one] for one in difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}? Known" if close else "known"
    return f"{hint}: {', '.join(names)}"


def described(error: BaseException, limit: int = 300) -> str:
    """Return another library's error message in one line of at most ``limit`` characters."""
    if isinstance(error, OSError) and error.strerror:
        return f"{_cut(str(error.filename), limit)}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".:")
    if not line or isinstance(error, (LookupError, TypeError, AttributeError)):  # their text alone explains little
        line = f"{type(error).__name__}: {line}".rstrip(": ")
    return _cut(line, limit)


def _cut(line: str, limit: int) -> str:
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


@contextmanager
def reading(what: str, hint: str = "") -> Iterator[None]:
    """Turn every error that another library raises while reading a file into one line.

    Damaged or hostile files make libraries raise errors of any type, so all are caught. Keep only the reading itself in
    the body of the ``with`` statement.

    Args:
        what: the file, as named in the message.
        hint: the way out.

    Raises:
        SubspaceError: the body raised an exception other than ``SubspaceError``, which passes through unchanged.
    """
    try:
        yield
    except SubspaceError:
        raise
    except Exception as error:
        raise SubspaceError(f"{what} cannot be read: {described(error)}{'; ' if hint else ''}{hint}") from error
