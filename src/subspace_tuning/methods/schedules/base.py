"""Schedules: after an optimiser step they read factors and gradients, and change factors or constants.

Steps are optimiser steps, counted from 1; a forward pass, an evaluation or a batch that only accumulates gradients does
not count. A schedule's whole state is in ``state_dict``, so that a run resumed from a checkpoint continues identically.
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
    """One adapted matrix. Everything is read on access, so that the model may be moved in between.

    ``value`` and ``gradient`` of a factor sharded over processes are whole, and ``write`` updates every copy. Values
    are those in the formula, even if the factor's parameter is the offset from its start.
    """

    @property
    def name(self) -> str:
        """The module's name."""

    @property
    def formula(self) -> Formula:
        """The formula, from which the factors' roles follow."""

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
        """Return the gradient of the last optimiser step, or None."""

    def write(self, factor: str, value: Tensor) -> None:
        """Set the value of a factor."""

    def forget(self, factor: str, moved: Tensor, optimizer: Optimizer) -> None:
        """Zero an optimiser's state for entries of a factor that have changed their meaning."""


@dataclass(frozen=True)
class Context:
    """What a schedule knows about the run.

    ``total`` is the number of optimiser steps; ``scores`` gives the Fisher information of every entry of every W on
    the examples at hand, for schedules that move masks.
    """

    sites: Sequence[Site]
    total: int
    scores: Callable[[], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True)
class Options:
    """The options of a schedule, each with a default; a number of steps that is None is a share of the run."""

    @classmethod
    def read(cls, name: str, given: Mapping[str, Any]) -> Options:
        """Create options from a mapping. Raises SubspaceError for an unknown key or a value that is not a number."""
        known = {one.name: one for one in settings(cls)}
        for key, value in given.items():
            if key not in known:
                raise SubspaceError(f"schedule {name} has no option {key!r}; {nearest(key, known)}")
            wanted = known[key].range
            if isinstance(value, bool) or not isinstance(value, (int, float)) or (wanted and value not in wanted):
                raise SubspaceError(f"schedule {name}: {key} = {value!r} is not a number that is {wanted}")
        return cls(**given)


def option(default: Any, meaning: str, within: Range = Range()) -> Any:  # noqa: B008
    """Declare an option: its default, its meaning, and its range."""
    return dataclasses.field(default=default, metadata={"help": meaning, "range": within})


class Schedule(ABC):
    """A schedule over the sites of one adapter. Subclasses define their options and what a step does."""

    options_class: ClassVar[type[Options]] = Options
    looks_at_examples: ClassVar[bool] = False  # needs the context's scores
    moves_entries: ClassVar[bool] = False  # entries of a factor change their meaning: needs the optimiser

    @classmethod
    def lacking(cls, formula: Formula) -> str | None:
        """Return what the schedule needs if the formula lacks it, or None."""
        return None

    def __init__(self, context: Context, options: Options) -> None:
        self.context = context
        self.sites = context.sites
        self.total = context.total
        self.stepped = False

    def step(self, step: int, optimizer: Optimizer | None = None) -> None:
        """Act after the optimiser step of this number (from 1), before its gradients are cleared.

        With ``optimizer``, a schedule that changes the meaning of a factor's entries can reset their optimiser state.
        """
        self.stepped = True
        self.act(step, optimizer)

    @abstractmethod
    def act(self, step: int, optimizer: Optimizer | None) -> None:
        """Implement ``step``."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state of the schedule."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (some have no state)
        """Restore the state from ``state_dict``."""

    def report(self) -> dict[str, Any]:
        """Return the outcome of the schedule, as plain data for the run's record."""
        return {}

    def _need(self, steps: int, what: str) -> None:
        if steps > self.total:
            raise SubspaceError(
                f"the schedule is longer than the run: {what}: {steps} optimiser steps of {self.total}; train "
                "longer, or shorten it with the adapter's `schedule` options"
            )


class NoSchedule(Schedule):
    """The schedule of a method without one: its steps do nothing."""

    def act(self, step: int, optimizer: Optimizer | None) -> None:
        """Do nothing."""


def steps(given: float | None, share: float, total: int) -> int:
    """Return a number of steps: the given one, or a share of the run, at least 1."""
    return int(given) if given is not None else max(1, round(share * total))
