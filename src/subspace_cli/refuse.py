"""Errors caused by the input or the machine, which are reported in one line; all others are bugs.

On a terminal a formula error has more lines, with the place underlined.
"""

from __future__ import annotations

import json
import traceback
from typing import Any

_FORMATS = {  # by name, since importing the libraries takes seconds
    "safetensors": ("SafetensorError",),
    "yaml": ("YAMLError",),
    "pickle": ("UnpicklingError",),
    "zipfile": ("BadZipFile",),
    "subspace_tuning": ("NotLinearError",),
}
_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "Unable to allocate")
_READERS = ("json", "yaml", "omegaconf")


class UsageError(Exception):
    """A call whose arguments do not fit together; the message is one line."""


def message_of(error: BaseException) -> str | None:
    """Return the one-line message for an error of the input or the machine, or None for a bug."""
    if isinstance(error, UsageError):
        return _line(str(error))
    # typer has its own copy of click, without a public name for its errors.
    words: Any = getattr(error, "format_message", None)
    if words is not None:
        return _line(words())
    from subspace_tuning.errors import SubspaceError, described

    if isinstance(error, SubspaceError):
        return _line(str(error))
    if isinstance(error, OSError):
        return _line(f"{described(error)}{_way_out(error)}")
    if isinstance(error, (json.JSONDecodeError, UnicodeError)) or _is_of_a_format(error):
        return _line(str(error)) if isinstance(error, TypeError) else described(error)
    if isinstance(error, RecursionError) and _raised_in(error, _READERS):
        return f"the input cannot be read: {described(error)}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in _MEMORY)):
        return "this machine does not have enough memory: choose a smaller model, rank or batch"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of ~somebody
        return described(error)
    return None


def drawn(error: BaseException) -> str | None:
    """Return a formula error in several lines for a terminal, with the place underlined; None for any other error."""
    if not getattr(error, "formula", ""):  # which formula errors have; importing their class takes seconds
        return None
    from rich.cells import cell_len

    found: Any = error
    before, place, after = found.parts
    way = found.hint.removeprefix("; ")
    lines = [
        f"{found.of}{found.reason}",
        f"  {before}{place}{after}",
        f"  {' ' * cell_len(before)}{'^' * max(1, cell_len(place))}",
    ]
    return "\n".join([*lines, way] if way else lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _way_out(error: OSError) -> str:
    import errno

    ways = {
        errno.ENOSPC: "make room, and call again",
        errno.EDQUOT: "make room, and call again",
        errno.EROFS: "choose another folder",
        errno.EACCES: "choose another folder, or change its permissions",
        errno.EPERM: "choose another folder, or change its permissions",
        errno.ENOTDIR: "part of the path is a file",
        errno.EISDIR: "name a file",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    way = ways.get(error.errno) if error.errno is not None else None
    return "" if way is None else f"; {way}"


def _is_of_a_format(error: BaseException) -> bool:
    return any(
        base.__name__ in names and base.__module__.partition(".")[0].lstrip("_") == package
        for base in type(error).__mro__
        for package, names in _FORMATS.items()
    )


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages for frame in frames[-1:])
