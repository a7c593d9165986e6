"""The paper's trainable shares (arXiv 2407.05417, Tables II to IV), compared with this package's counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import SubspaceError, nearest
from ..tuner import SubspaceConfig
from .count import Count, count

BUDGETS = (2, 4, 8, 16)
"""The paper's names for its four budgets: the rank of LoRA."""
TOLERANCE, RELATIVE_TOLERANCE = 0.03, 0.005


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: its name there, the method here, and the rank at a budget of 1 (0: no rank)."""

    name: str
    method: str
    rank: int
    pattern: str = "none"


ROWS = (
    PaperRow("SAM-PARSER", "sam_parser", 0),
    PaperRow("(IA)^3", "ia3", 0),
    PaperRow("SSL", "ssl", 0),
    PaperRow("SSB", "ssb", 0),
    PaperRow("BitFit", "bitfit", 0),
    PaperRow("HAdapter", "houlsby", 4),
    PaperRow("PAdapter", "pfeiffer", 8),
    PaperRow("PA", "parallel_adapter", 1),
    PaperRow("LoRA", "lora", 1),
    PaperRow("LoRA+MPC_o", "lora", 1, "orthogonal"),
    PaperRow("LoRA+MPC_d", "lora", 1, "diagonal"),
    PaperRow("LoRA+MPC_n", "lora", 1, "nonlinear"),
    PaperRow("TriLoRA", "trilora", 1),
    PaperRow("TriLoRA+MPC_o", "trilora", 1, "orthogonal"),
    PaperRow("AdaLoRA-MPC_o", "adalora", 1),
    PaperRow("AdaLoRA", "adalora", 1, "orthogonal"),
    PaperRow("FLoRA", "flora", 1),
    PaperRow("DoRA", "dora", 1),
)

# Per mille of all parameters: one figure for methods without a rank, otherwise one per budget. "LoRA" is for every row
# with the shape of LoRA: PA, LoRA and TriLoRA with their patterns, AdaLoRA.
_FIGURES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "roberta-base": {
        "SAM-PARSER": (0.44,),
        "(IA)^3": (0.44,),
        "SSL": (0.22,),
        "SSB": (0.66,),
        "BitFit": (0.82,),
        "HAdapter": (2.50, 4.87, 9.59, 19.03),
        "PAdapter": (2.43, 4.80, 9.52, 18.96),
        "LoRA": (2.65, 5.31, 10.62, 21.24),
        "FLoRA": (2.65, 5.31, 10.64, 21.38),
        "DoRA": (3.32, 5.97, 11.28, 21.90),
    },
    "deberta-v3-base": {
        "SAM-PARSER": (0.30,),
        "(IA)^3": (0.30,),
        "SSL": (0.15,),
        "SSB": (0.45,),
        "BitFit": (0.54,),
        "HAdapter": (1.68, 3.32, 6.63, 12.93),
        "PAdapter": (1.63, 3.26, 6.41, 12.88),
        "LoRA": (1.79, 3.61, 7.23, 14.43),
        "FLoRA": (1.79, 3.61, 7.24, 14.52),
        "DoRA": (2.23, 4.06, 7.66, 14.87),
    },
    "roberta-large": {
        "SAM-PARSER": (0.42,),
        "(IA)^3": (0.42,),
        "SSL": (0.21,),
        "SSB": (0.62,),
        "BitFit": (0.76,),
        "HAdapter": (2.35, 4.57, 9.00, 17.87),
        "PAdapter": (2.29, 4.50, 8.93, 17.80),
        "LoRA": (2.49, 4.98, 9.97, 19.94),
        "FLoRA": (2.49, 4.99, 9.98, 19.98),
        "DoRA": (3.12, 5.61, 10.59, 20.56),
    },
}


@dataclass(frozen=True)
class Compared:
    """A row of the paper at a budget (None without a rank), this package's count, and the paper's per mille."""

    row: PaperRow
    budget: int | None
    counted: Count
    paper: float

    @property
    def difference(self) -> float:
        """Return our per mille minus the paper's."""
        return self.counted.per_mille - self.paper

    @property
    def agrees(self) -> bool:
        """Whether they agree within 0.03 or half a percent, whichever is larger."""
        return abs(self.difference) <= max(TOLERANCE, RELATIVE_TOLERANCE * self.paper)


def compare(model: str) -> Iterator[Compared]:
    """Count every row of the paper at every budget.

    Args:
        model: ``roberta-base``, ``deberta-v3-base`` or ``roberta-large``, with or without the hub's owner.

    Raises:
        SubspaceError: the paper has no figures for the model.
    """
    short = model.rpartition("/")[2]
    if short not in _FIGURES:
        raise SubspaceError(f"the paper has no figures for {model!r}; {nearest(short, _FIGURES)}")
    wanted = [(row, budget) for row in ROWS for budget in (BUDGETS if row.rank else (None,))]
    configs = [
        SubspaceConfig(
            method=row.method, r=8 if budget is None else row.rank * budget, pattern=row.pattern if row.rank else None
        )
        for row, budget in wanted
    ]
    for (row, budget), counted in zip(wanted, count(model, configs), strict=True):
        figures = _FIGURES[short].get(row.name, _FIGURES[short]["LoRA"])
        yield Compared(row, budget, counted, figures[0 if budget is None else BUDGETS.index(budget)])
