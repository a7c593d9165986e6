"""The config of a comparison: what is compared, on what, and how the learning rates are tuned."""

# ruff: noqa: RUF009 (the calls in the classes create fields)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..documented import Range, documented
from ..training.keys import COUNT, FROM_ZERO, key
from ..training.sections import MISSING

DERIVED = "derived"
"""The value of `tuning.rates.around` for each method's own learning rate."""
_FACTOR = 2.0


def _made(default: Callable[[], Any], meaning: str) -> Any:
    return field(default_factory=default, metadata={"help": meaning})


@documented
@dataclass
class RatesSection:
    """The grid of learning rates."""

    around: int | float | str = key(
        DERIVED,
        "the middle of the grid: derived for each row's own default, or a number; a row's `around` overrides it",
    )
    factor: float = key(_FACTOR, "the ratio of neighbouring rates, above 1", Range(positive=True))
    tries: int = key(5, "the number of rates of each row, at least 2", COUNT)


@documented
@dataclass
class TuningSection:
    """How the learning rate of each row is chosen, on each task, model and budget."""

    seeds: list[int] = _made(lambda: [1001], "the seeds of the runs that choose a rate; none of them may be in `seeds`")
    split: float = key(
        0.2,
        "the share of the training rows that these runs hold out and are scored on; the reported rows stay unseen",
        Range(positive=True, below=1),
    )
    extend_edges: int = key(
        2,
        "how often a grid whose best rate is at its edge is extended by one rate there; the rate at the other end then "
        "no longer counts, so that the same number counts for every row",
        FROM_ZERO,
    )
    rates: RatesSection = field(default_factory=RatesSection)


@documented
@dataclass
class CompareConfig:
    """A comparison."""

    store: str = key(MISSING, "the file for the results, an SQLite database; runs are made in a folder beside it")
    rows: dict[str, Any] = key(
        MISSING,
        "what is compared, by name: the keys of a run's `adapter` section, and perhaps `around`, the middle of its "
        "grid of rates, and `training`, with keys of that section for this row alone",
    )
    tasks: dict[str, Any] = key(
        MISSING, "the tasks by name: the keys of a run's `task` section, whose name is optional"
    )
    models: list[str] = key(MISSING, "the models")
    base: dict[str, Any] = _made(dict, "what all runs share: keys of the sections `task`, `adapter` and `training`")
    budgets: list[Any] = _made(
        lambda: [None],
        "numbers of trained parameters, such as 300k or 0.3permille, to which the rank of each row is chosen; null: as "
        "the row says",
    )
    seeds: list[int] = _made(lambda: [1, 2, 3, 4, 5], "the seeds of the reported runs")
    tuning: TuningSection | None = field(default_factory=TuningSection)  # None: each row has its own default rate


SECTIONS = {"tuning": TuningSection, "tuning.rates": RatesSection}
"""The sections of a comparison's config, by their keys."""
