"""Methods: formulas with their data, or classes of peft (see :mod:`.hosted`)."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Literal

from ..algebra import Formula, FormulaError, Sizes, nearest_formula, parse
from ..errors import SubspaceError, nearest
from .checks import start_problem, start_refusal
from .counts import polynomial
from .factors import Reading
from .roles import ALL_MATRICES
from .schedules import SCHEDULES
from .selections import SELECTIONS, Selection
from .starts import fixed_number, infer_starts, lookup, takes_triples

UNNAMED = "formula"  # the name of a formula given in a config

Category = Literal["reconstruction", "extension", "combination"]


class AnyMethod(ABC):
    """What all methods have, however they are run: their catalogue entry and their default learning rate."""

    name: str
    formula: object
    category: str
    mode: str
    count: str | None
    learning_rate: float
    citation: str
    description: str

    @property
    def default_rate(self) -> str:
        """The default learning rate, in words."""
        return f"{self.learning_rate:g}"

    @property
    @abstractmethod
    def merges(self) -> bool:
        """Whether the trained tensors can be written into the weights."""

    @property
    @abstractmethod
    def on_matrices(self) -> Method:
        """The method as a formula over each matrix. Raises SubspaceError if it is not one."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Return the method's properties, by keyword."""


@dataclass(frozen=True)
class Method(AnyMethod):
    """A way to fine-tune a frozen W (n x m).

    ``starts`` gives the start of factors for which it does not follow from the form (see ``starts.infer_starts``);
    ``count`` is the number of trainable parameters per matrix, a polynomial in the dimensions of ``Sizes``;
    ``includes`` names the special cases, with the values of the factors that give them.

    ``mode`` is the paper's subdivision of the category. Some methods need more: ``selection`` says how a mask or the
    adapted modules are chosen (see SELECTIONS), and ``budget`` which share of them by default; ``schedule`` names the
    schedule that acts on the factors between optimiser steps; ``pattern`` and ``pattern_weight`` are constraints that
    belong to the method; ``convolution`` is the formula on a convolution with one, two or three axes, where C means one
    factor per axis.

    ``derives_rate`` says whether the default learning rate is the one that follows from the formula (see
    ``theory.travel``), because sweeps support it. ``learning_rate`` is the default otherwise, and where none follows.
    """

    name: str
    formula: Formula
    category: Category
    placement: tuple[str, ...] = ALL_MATRICES
    count: str | None = None
    starts: Mapping[str, str] = field(default_factory=dict)
    includes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    learning_rate: float = 1e-3
    citation: str = ""
    description: str = field(default="", compare=False)
    mode: str = ""
    selection: str | None = None
    budget: float | None = None
    schedule: str | None = None
    pattern: tuple[str, ...] = ()
    pattern_weight: float = 0.0
    convolution: str | None = None
    derives_rate: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (
            ("selection", self.selection, SELECTIONS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if given not in (None, *known):
                raise SubspaceError(f"method {self.name!r}: unknown {what}; {nearest(str(given), known)}")
        unknown = set(self.starts) - set(self.formula.trainable)
        if unknown:
            wrong = min(unknown)
            raise SubspaceError(
                f"method {self.name!r}: a start is given for {wrong!r}; {nearest(wrong, self.formula.trainable)}"
            )
        for start in self.starts.values():
            lookup(start)
        if not self.formula.trainable:
            written, named = str(self.formula), self.name if self.is_named else None
            found = nearest_formula(written, starts_at_weight)
            raise FormulaError(
                "phi(W) has no trainable factor", written, None, None if found is None else str(found), method=named
            )
        lacking = None if self.schedule is None else SCHEDULES[self.schedule].lacking(self.formula)
        if lacking is not None:
            raise SubspaceError(
                f"method {self.name!r}: the schedule {self.schedule} needs {lacking}, and {self.formula} has none"
            )

    def __repr__(self) -> str:
        return f"Method({self.name!r}, {str(self.formula)!r})"

    def __hash__(self) -> int:
        return hash((self.name, self.formula))

    @property
    def default_rate(self) -> str:
        return "derived from the formula" if self.derives_rate else super().default_rate

    @property
    def is_named(self) -> bool:
        """Whether the method has its own name, unlike a formula in a config."""
        return self.name != UNNAMED

    def like(self, formula: Formula, starts: Mapping[str, str]) -> Method:
        """Return a copy of the method with another formula and other starts."""
        return Method(self.name, formula, self.category, starts=starts)

    def starts_for(self, one_hot: bool = False) -> Mapping[str, str]:
        """Return the start of every trainable factor; ``one_hot`` for an embedding, whose rows are looked up."""
        return _starts(self.formula, tuple(sorted(self.starts.items())), one_hot)

    def anchors(self, one_hot: bool = False) -> Mapping[str, bool]:
        """Return for every trainable factor whether its parameter is the offset from an anchor."""
        return self._anchors[1] if one_hot else self._anchors[0]

    def fixed_anchors(self, one_hot: bool = False) -> Mapping[str, float]:
        """Return the anchors that are one number for every matrix, such as 1 for a scale."""
        return self._fixed_anchors[1] if one_hot else self._fixed_anchors[0]

    @property
    def chooser(self) -> Selection | None:
        """The method's selection; None for a method that chooses nothing."""
        return None if self.selection is None else SELECTIONS[self.selection]

    @property
    def needs_calibration(self) -> bool:
        """Whether the factors can only be made after a choice from data."""
        return self.chooser is not None and self.chooser.needs_data

    @property
    def chooses_by_weight(self) -> bool:
        """Whether the trained entries are chosen, by W alone."""
        return self.chooser is not None and not self.chooser.needs_data

    @property
    def chooses_form(self) -> bool:
        """Whether data decide the form of a matrix, so that its factors alone do not identify the method."""
        return self.chooser is not None and self.chooser.settles_form

    @cached_property
    def takes_triples(self) -> bool:
        """Whether the rank counts singular triples of W, of which there are min(n, m)."""
        starts = {start for one_hot in (False, True) for start in self.starts_for(one_hot).values()}
        leading = {"U_r", "S_r", "V_r"} & set(self.formula.spectral)
        return bool(leading) or any(map(takes_triples, starts))

    def rank_in(self, n: int, m: int, r: int) -> int:
        """Return the rank on an n x m matrix: r, or min(n, m) if there are fewer than r singular triples."""
        return min(r, n, m) if self.takes_triples else r

    def on_axes(self, axes: int) -> Method:
        """Return the method's version for a convolution with this number of axes."""
        if self.convolution is None:
            return self
        windows = ", ".join(f"C{axis}" for axis in range(1, axes + 1))
        formula = parse(re.sub(r"\bC\b", windows, self.convolution))
        starts = dict.fromkeys(formula.windows, "identity") | dict(self.starts)
        return dataclasses.replace(self, formula=formula, starts=starts, count=None, includes={}, convolution=None)

    @cached_property
    def readings(self) -> tuple[Reading, Reading]:
        """How a forward pass reads the factors from parameters and constants: in general, and if rows are looked up."""
        return Reading.of(self, False), Reading.of(self, True)

    # Cached, since loops over all adapted layers use them.

    @cached_property
    def _anchors(self) -> tuple[Mapping[str, bool], Mapping[str, bool]]:
        dense_rows, one_hot = (
            {name: lookup(start)[2] for name, start in self.starts_for(kind).items()} for kind in (False, True)
        )
        return dense_rows, one_hot

    @cached_property
    def _fixed_anchors(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        dense_rows, one_hot = (
            {
                name: number
                for name, start in self.starts_for(kind).items()
                if (number := fixed_number(start)) is not None
            }
            for kind in (False, True)
        )
        return dense_rows, one_hot

    def counted(self, sizes: Sizes) -> int:
        """Return the number of trainable parameters of one matrix."""
        return self.formula.count(sizes) if self.count is None else polynomial(self.count, sizes)

    @property
    def merges(self) -> bool:
        """Whether phi(W) can be written into the weight."""
        return self.formula.is_linear

    @property
    def on_matrices(self) -> Method:
        """The method itself."""
        return self

    def facts(self) -> dict[str, str]:
        """Return the method's properties, by keyword."""
        formula, pattern = self.formula, f"{'+'.join(self.pattern)}, weight {self.pattern_weight:g}"
        return {
            "method": self.name,
            "formula": str(formula),
            "category": self.category + (f", {self.mode}" if self.mode else ""),
            "parameters": f"{self.count} per matrix",
            "placement": ", ".join(self.placement),
            "merges": "yes" if self.merges else "no: phi(W) is not one matrix",
            "learning rate": self.default_rate,
            "includes": ", ".join(self.includes) or "-",
            "citation": self.citation,
            **{
                f"factor {name}": f"{' x '.join(formula.shapes[name]) or 'a number'}, starts at {start}"
                for name, start in self.starts_for().items()
            },
            **({"chooses": self.chooser.text} if self.chooser else {}),
            **({"schedule": self.schedule} if self.schedule else {}),
            **({"pattern": pattern} if self.pattern else {}),
        }

    @property
    def start_problem(self) -> str | None:
        """The problem with the start at rank 3 in one line, or None (see ``checks.start_problem``)."""
        return start_problem(self)

    def check_start(self, rank: int = 3, one_hot: bool = False) -> None:
        """Raise FormulaError if phi(W) is not W at the start, or if some factor cannot leave it."""
        rank = rank if self.formula.has_rank else 3
        found = start_problem(self, rank, one_hot)
        if found is not None:
            raise start_refusal(self, rank, one_hot, found)


@lru_cache(maxsize=256)
def _starts(formula: Formula, declared: tuple[tuple[str, str], ...], one_hot: bool) -> Mapping[str, str]:
    found = infer_starts(formula, one_hot) | dict(declared)
    # In reading order, so that factors are drawn in an order independent of their names.
    return MappingProxyType({name: found[name] for name in formula.trainable if name in found})


def starts_at_weight(formula: Formula) -> bool:
    """Return whether a formula by itself starts at phi(W) = W and can leave it."""
    return bool(formula.trainable) and start_problem(Method(UNNAMED, formula, "extension")) is None
