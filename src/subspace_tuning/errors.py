"""The one error that a person can cause: bad input, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SubspaceError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and the way out."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a hint such as ``did you mean lora, flora? Known: ...`` for a name that is not among ``known``."""
    names = sorted(known)
    lowered = {known.lower(): known for known in names}
    close = [lowered[one] for one in difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
