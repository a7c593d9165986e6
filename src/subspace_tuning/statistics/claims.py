"""Claims about rows as data: what a file says, and the paper's own.

Examples:
    >>> [claim.kind for claim in paper_claims()][:3]
    ['above', 'above', 'equivalent']
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..errors import SubspaceError, nearest, reading

KINDS: Mapping[str, frozenset[str]] = {
    "above": frozenset({"than"}),
    "equivalent": frozenset({"margin"}),
    "share_of": frozenset({"than", "share"}),
    "spread_below": frozenset({"than"}),
    "ordering": frozenset(),
}
"""The kinds of claims, and the keys that each needs besides ``claim``, ``kind`` and ``rows``."""


@dataclass(frozen=True)
class Claim:
    """A testable sentence about rows.

    Attributes:
        claim: the sentence.
        kind: what is tested. "above": each of ``rows`` scores above each of ``than``. "equivalent": all of ``rows``
            score the same, within ``margin``. "share_of": each of ``rows`` reaches a ``share`` of the score of each of
            ``than``. "spread_below": the standard deviation over seeds of each of ``rows`` is below that of each of
            ``than``. "ordering": ``rows`` are in order, the best first.
        rows: names of rows.
        than: names of the rows with which they are compared.
        margin: in the units of the score: by how much at least (above, ordering), or at most (equivalent).
        share: such as 0.99.
        matched: whether the rows must have equal numbers of trained parameters.
        source: where the claim is made.
    """

    claim: str
    kind: str
    rows: tuple[str, ...]
    than: tuple[str, ...] = ()
    margin: float = 0.0
    share: float = 1.0
    matched: bool = True
    source: str = ""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of rows for which the claim must hold."""
        if self.kind == "equivalent":
            return list(itertools.combinations(self.rows, 2))
        if self.kind == "ordering":
            return list(itertools.pairwise(self.rows))
        return list(itertools.product(self.rows, self.than))

    @property
    def names(self) -> tuple[str, ...]:
        """The rows that the claim is about."""
        return tuple(dict.fromkeys([*self.rows, *self.than]))


def paper_claims() -> list[Claim]:
    """Return the testable claims of arXiv 2407.05417, with rows named as in ``paper_results``."""
    text = resources.files(__package__).joinpath("paper_claims.yaml").read_text(encoding="utf-8")
    return _parsed(text, "the paper's claims")


def read_claims(path: str | Path) -> list[Claim]:
    """Return the claims in a YAML file, a list under the key ``claims``.

    Raises:
        SubspaceError: the file cannot be read, or a claim is not well-formed.
    """
    with reading(str(path)):
        text = Path(path).expanduser().read_text(encoding="utf-8")
    return _parsed(text, str(path))


def applicable(claims: Iterable[Claim], rows: Sequence[str]) -> tuple[list[Claim], list[Claim]]:
    """Return the claims all of whose rows are there, and the others."""
    found: tuple[list[Claim], list[Claim]] = [], []
    for claim in claims:
        found[not set(claim.names) <= set(rows)].append(claim)
    return found


def _parsed(text: str, where: str) -> list[Claim]:
    with reading(where):
        content = yaml.safe_load(text)
    if not isinstance(content, dict) or set(content) != {"claims"} or not isinstance(content["claims"], list):
        raise SubspaceError(f"{where} must be a mapping with a list under the key 'claims'")
    if not content["claims"]:
        raise SubspaceError(f"{where} has no claims")
    claims = [_claim(entry, f"claim {number} of {where}") for number, entry in enumerate(content["claims"], 1)]
    sentences = [claim.claim for claim in claims]
    for sentence in sentences:
        if sentences.count(sentence) > 1:
            raise SubspaceError(f"{where} has the claim {sentence!r} twice")
    return claims


def _claim(entry: Any, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise SubspaceError(f"{where} must be a mapping")
    fields = {field.name: field for field in dataclasses.fields(Claim)}
    for key in entry:
        if key not in fields:
            raise SubspaceError(f"{where}: unknown key {key!r}; {nearest(str(key), fields)}")
    kind = str(entry.get("kind"))
    if kind not in KINDS:
        raise SubspaceError(f"{where}: kind is {kind!r}; {nearest(kind, KINDS)}")
    missing = [key for key in ("claim", "rows", *sorted(KINDS[kind])) if key not in entry]
    if missing:
        raise SubspaceError(f"{where}: {kind} needs {', '.join(missing)}")
    values = {key: _value(key, value, where) for key, value in entry.items()}
    claim = Claim(**values)
    if not claim.pairs or any(row == other for row, other in claim.pairs):
        raise SubspaceError(f"{where}: {kind} needs at least two different rows")
    if not (0 < claim.share < math.inf and 0 <= claim.margin < math.inf):
        raise SubspaceError(f"{where}: a share is positive, and a margin at least 0")
    if kind == "equivalent" and not claim.margin:
        raise SubspaceError(
            f"{where}: equivalent needs a positive margin: no test shows that a difference is exactly 0"
        )
    return claim


def _value(key: str, value: Any, where: str) -> Any:
    """Return the value of a key in its type; one row may stand without a list."""
    if key in ("rows", "than"):
        rows = value if isinstance(value, list) else [value]
        if all(isinstance(row, str) for row in rows):
            return tuple(rows)
        raise SubspaceError(f"{where}: {key} must be names of rows, not {value!r}")
    if key in ("margin", "share") and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    expected = {"margin": float, "share": float, "matched": bool}.get(key, str)
    if not isinstance(value, expected):
        raise SubspaceError(f"{where}: {key} is {value!r}, which is not of the type {expected.__name__}")
    return value
