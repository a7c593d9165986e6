"""Callbacks for saving an adapter, and whether the schedule of its method has been stepped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakMethod, finalize, ref

from ..methods.schedules import Schedule

PATIENCE = 50
"""Training passes without a schedule before a warning; ten times as many if there is one that nothing steps."""


@dataclass
class Life:
    """What has happened to an adapter, identified by its config."""

    schedules: list[ref[Schedule]] = field(default_factory=list)
    savers: list[WeakMethod[Any]] = field(default_factory=list)
    passes: int = 0
    warned: bool = False


_LIVES: dict[int, Life] = {}


def life(config: Any) -> Life:
    """Return the record of a config's adapter, which lives as long as the config."""
    key = id(config)
    if key not in _LIVES:
        _LIVES[key] = Life()
        finalize(config, _LIVES.pop, key, None)
    return _LIVES[key]


def on_save(config: Any, saver: Callable[[Path], None]) -> None:
    """Call a method with the folder whenever this config is saved, as long as the method's object lives."""
    life(config).savers.append(WeakMethod(saver))


def saved(config: Any, folder: Path) -> None:
    """Call the methods registered for saving a config's adapter."""
    if id(config) not in _LIVES:
        return
    for held in life(config).savers:
        saver = held()
        if saver is not None:
            saver(folder)
    if life(config).passes:
        _warn_unless_stepped(config)


def expect_steps(config: Any, schedule: Schedule) -> None:
    """Record that a schedule was made for a config's adapter."""
    life(config).schedules.append(ref(schedule))


def count_pass(config: Any) -> None:
    """Count a training pass of an adapter whose method has a schedule, and warn once if nothing steps it."""
    known = life(config)
    known.passes += 1
    if known.passes > (10 * PATIENCE if known.schedules else PATIENCE):
        _warn_unless_stepped(config)


def _warn_unless_stepped(config: Any) -> None:
    known = life(config)
    plans = [plan for plan in (held() for held in known.schedules) if plan is not None]
    stepped = any(plan.stepped for plan in plans) or (known.schedules and not plans)
    if known.warned or stepped:
        return
    known.warned = True
    warnings.warn(
        f"method {config.resolved.name!r} has a schedule, but nothing stepped it in {known.passes} training passes: "
        "give the Trainer callbacks=[ScheduleCallback(model)], or call schedule(model, total_steps).step after each "
        "optimizer.step",
        UserWarning,
        stacklevel=4,
    )
