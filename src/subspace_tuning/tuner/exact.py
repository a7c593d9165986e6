r"""A regular expression that matches given module names and no others.

peft matches an expression against whole names. Given a list, it takes every module whose name *ends* in an entry.

Examples:
    >>> print(exactly(["h.0.fc", "h.1.fc"], among=["h.0.fc", "h.1.fc", "fc"]))
    h\.\d+\.fc
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable


def exactly(names: Iterable[str], among: Iterable[str] = ()) -> str:
    """Return the expression.

    Args:
        names: the modules to match.
        among: all modules of the model. If the module of a name is matched in every block, the numbers are not listed.
    """
    left, every = dict.fromkeys(names), list(among)
    parts: list[str] = []
    for numbers in (-1, 1, 0):  # all of a name's numbers, only its first, none
        groups, known = _by_pattern(left, numbers), _by_pattern(every, numbers)
        whole = {pattern: group for pattern, group in groups.items() if numbers == 0 or group == known[pattern]}
        left = {name: None for name in left if not any(name in group for group in whole.values())}
        parts += whole
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"


def _by_pattern(names: Iterable[str], numbers: int) -> defaultdict[str, set[str]]:
    """Group names that differ only in the numbers of their blocks."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", f".{name}", count=max(numbers, 0)) if numbers else f".{name}"
        found[re.escape(pattern[1:]).replace(r"\#", r"\d+")].add(name)
    return found
