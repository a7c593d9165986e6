"""What a schedule is: it looks at factors and gradients after an optimiser step, and changes factors or constants.

Steps are optimiser steps, counted from 1; a forward pass, an evaluation or a batch that only accumulates gradients is
none. All that a schedule remembers is in ``state_dict``, so that a run that goes on from a checkpoint goes on the same.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ...algebra import Formula
from ...documented import Range, settings
from ...errors import SubspaceError, nearest


class Site(Protocol):
    """One adapted matrix. What it gives is read when it is asked for, so that a model may be moved in between.

    A factor's ``value`` and ``gradient`` are whole where it is spread over processes, and ``write`` reaches every copy.
    Values are those that stand in the formula, also of a factor whose parameter is the offset from its start.
    """

    @property
    def name(self) -> str:
        """The module's name."""

    @property
    def formula(self) -> Formula:
        """The formula, which tells what role each factor has."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The factors, by name."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The frozen tensors of the method, by name."""

    @property
    def weight(self) -> Tensor:
        """The frozen W (n x m)."""

    @property
    def scale(self) -> float:
        """The scale s."""

    @property
    def rank(self) -> int:
        """The rank r."""

    def value(self, factor: str) -> Tensor:
        """Return the value of a factor."""

    def gradient(self, factor: str) -> Tensor | None:
        """Return the gradient of the last optimiser step, None if there is none."""

    def write(self, factor: str, value: Tensor) -> None:
        """Give a factor another value."""

    def forget(self, factor: str, moved: Tensor, optimizer: Optimizer) -> None:
        """Zero what an optimiser remembers of those entries of a factor that have come to mean something else."""


@dataclass(frozen=True)
class Context:
    """What a schedule knows of the run.

    ``total`` is the number of optimiser steps; ``scores`` gives the Fisher information of every entry of every W on
    the examples at hand, for schedules that move masks.
    """

    sites: Sequence[Site]
    total: int
    scores: Callable[[], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True)
class Options:
    """The settings of a schedule, each with a default; a number of steps at None is a share of the run."""

    @classmethod
    def read(cls, name: str, given: Mapping[str, Any]) -> Options:
        """Make options from a mapping. Raises SubspaceError for an unknown key or a value that is not a number."""
        known = {one.name: one for one in settings(cls)}
        for key, value in given.items():
            if key not in known:
                raise SubspaceError(f"schedule {name} has no option {key!r}; {nearest(key, known)}")
            wanted = known[key].range
            if isinstance(value, bool) or not isinstance(value, (int, float)) or (wanted and value not in wanted):
                raise SubspaceError(f"schedule {name}: {key} = {value!r} is not a number that is {wanted}")
        return cls(**given)


def option(default: Any, meaning: str, within: Range = Range()) -> Any:  # noqa: B008
    """Declare an option: its default, its meaning, and the numbers that it takes."""
    return dataclasses.field(default=default, metadata={"help": meaning, "range": within})


class Schedule(ABC):
    """A schedule over the sites of one adapter. Subclasses name their options and say what a step does."""

    options_class: ClassVar[type[Options]] = Options
    looks_at_examples: ClassVar[bool] = False  # it asks for the context's scores
    moves_entries: ClassVar[bool] = False  # entries of a factor change their meaning: it asks for the optimiser

    @classmethod
    def lacking(cls, formula: Formula) -> str | None:
        """Return what the schedule acts on, where the formula has no such thing; None if it has."""
        return None

    def __init__(self, context: Context, options: Options) -> None:
        self.context = context
        self.sites = context.sites
        self.total = context.total
        self.stepped = False

    def step(self, step: int, optimizer: Optimizer | None = None) -> None:
        """Act after the optimiser step of this number (from 1), while the gradients of the step are still there.

        ``optimizer`` lets a schedule that gives an entry of a factor another meaning reset what is remembered of it.
        """
        self.stepped = True
        self.act(step, optimizer)

    @abstractmethod
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        """Do what ``step`` promises."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the schedule remembers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (some remember nothing)
        """Take up what ``state_dict`` gave."""

    def report(self) -> dict[str, Any]:
        """Return what the schedule came to, as plain data for the run's record."""
        return {}

    def _need(self, steps: int, what: str) -> None:
        if steps > self.total:
            raise SubspaceError(
                f"the schedule is longer than the run: {what} takes {steps} optimiser steps of {self.total}; train "
                "longer or shorten it with the adapter's `schedule` options"
            )


class NoSchedule(Schedule):
    """The schedule of a method that has none: its steps do nothing."""

    def act(self, step: int, optimizer: Optimizer | None) -> None:
        """Do nothing."""


def steps(given: float | None, share: float, total: int) -> int:
    """Return a number of steps: the given one, or a share of the run, at least 1."""
    return int(given) if given is not None else max(1, round(share * total))
