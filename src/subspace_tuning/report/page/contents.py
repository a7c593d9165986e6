"""What a page shows, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ...errors import SubspaceError

if TYPE_CHECKING:
    import pandas as pd

RUNS = tuple("run row method task model budget trained head rate seed stage state metric score seconds memory".split())
CELL = ("row", "task", "model", "budget")
INTERVALS = ("task", "row", "baseline", "difference", "low", "high")
PUBLISHED = ("task", "row", "source", "score")

Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """A claim, what the runs say about it, the figure that decides, and where the claim comes from."""

    claim: str
    verdict: Outcome
    figure: str
    source: str


@dataclass(frozen=True)
class Page:
    """The results of a comparison.

    Attributes:
        runs: one line per run and cell, with the columns ``RUNS``; a run may stand at two budgets. ``stage`` is
            ``tuning`` or ``report``, and ``state`` is ``done`` if the run has a score. ``trained`` and ``head`` are
            numbers of parameters, ``seconds`` is the time of training, and ``memory`` its peak in MiB. ``budget`` is
            missing where a row is taken as it is. A column ``error`` says why a run failed.
        config: returns the config of a run, as plain data.
        curve: returns the loss curve of a run, pairs of a step and a loss.
        verdicts: the claims, in the order in which they are shown.
        intervals: paired differences from a baseline, positive where the row is better, with the columns ``INTERVALS``
            and optionally ``model`` and ``budget``. Those without a figure are left out.
        published: scores that others have published for rows of the same name, with the columns ``PUBLISHED``, in the
            units of the runs' scores. ``source`` says whose they are, and of which model and budget.
        smaller_is_better: the metrics of which this holds.
        title: the title of the page.
    """

    runs: pd.DataFrame
    config: Callable[[str], Mapping[str, Any]]
    curve: Callable[[str], Sequence[tuple[float, float]]]
    verdicts: Sequence[Verdict] = ()
    intervals: pd.DataFrame | None = None
    published: pd.DataFrame | None = None
    smaller_is_better: Collection[str] = ()
    title: str = "Comparison"

    def __post_init__(self) -> None:
        """Check what is given.

        Raises:
            SubspaceError: a frame lacks columns, there is no run or one twice in a cell, or a verdict is unknown.
        """
        for name, frame, wanted in (
            ("runs", self.runs, RUNS),
            ("intervals", self.intervals, INTERVALS),
            ("published", self.published, PUBLISHED),
        ):
            missing = [] if frame is None else [column for column in wanted if column not in frame]
            if missing:
                raise SubspaceError(f"the page's frame of {name} has no column {', '.join(missing)}")
        if self.runs.empty:
            raise SubspaceError("there are no runs to show: a comparison has at least one")
        twice = self.runs["run"][self.runs.duplicated(["run", *CELL])]
        if len(twice):
            raise SubspaceError(f"run {twice.iloc[0]!r} is twice in one cell of the page's frame of runs")
        for one in self.verdicts:
            if one.verdict not in get_args(Outcome):
                raise SubspaceError(f"a verdict is {', '.join(get_args(Outcome))}, not {one.verdict!r}: {one.claim}")
