"""Statistics of a comparison: intervals, paired tests, ranks, and verdicts on claims.

The functions take the ``Results`` of a comparison, whose rows they pair by seed, task, model and budget. They refuse
what is not matched, and say what it is.
"""

from __future__ import annotations

from ..extras import needs

needs("a comparison", "compare")

from .claims import Claim, applicable, paper_claims, read_claims
from .differences import differences
from .items import items_interval, items_intervals, mcnemar
from .paired import Paired, detectable, equivalence, paired
from .published import paper_results
from .ranks import Ranks, bayesian_signed_rank, ranks
from .results import Cell, Results, mismatches
from .summary import summary
from .tables import FORMATS, write_tables
from .text_tables import Table
from .verdicts import Verdict, as_frame, verdicts

__all__ = [
    "FORMATS",
    "Cell",
    "Claim",
    "Paired",
    "Ranks",
    "Results",
    "Table",
    "Verdict",
    "applicable",
    "as_frame",
    "bayesian_signed_rank",
    "detectable",
    "differences",
    "equivalence",
    "items_interval",
    "items_intervals",
    "mcnemar",
    "mismatches",
    "paired",
    "paper_claims",
    "paper_results",
    "ranks",
    "read_claims",
    "summary",
    "verdicts",
    "write_tables",
]
