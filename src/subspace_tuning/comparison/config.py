"""Reading a comparison's config, and checking its values; what belongs to a run is checked by the run's own config."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..documented import settings
from ..errors import SubspaceError, nearest, reading
from ..training.config import read
from ..training.keys import COUNT
from .sections import DERIVED, SECTIONS, CompareConfig, TuningSection

_SHARED = ("task", "adapter", "training", "quantise")
_SEED = 2**32  # numpy's range


def load(path: str | Path, overrides: Sequence[str] = ()) -> CompareConfig:
    """Return the comparison described by a YAML file.

    Args:
        path: the file.
        overrides: `key=value` strings that override the file's values; a value is parsed as YAML.

    Raises:
        SubspaceError: the file is missing or malformed, a key is unknown, a value has the wrong type or is out of
            range, or the comparison has no runs.
    """
    with reading(f"config file {str(path)!r}"):  # odd content raises many types of errors
        return validate(read(path, overrides, CompareConfig, ("base",)))


def validate(config: CompareConfig) -> CompareConfig:
    """Return the same config if its own values are consistent, without reading data or models.

    Raises:
        SubspaceError: a value is out of range; the message names the key and the value.
    """
    if not config.store.strip() or "\0" in config.store:
        raise SubspaceError(f"store is {config.store!r}, which is empty")
    for name in ("rows", "tasks", "models", "budgets", "seeds"):
        if not getattr(config, name):
            raise SubspaceError(f"the comparison has no runs: {name} is empty")
    for name, known in (("models", config.models), ("budgets", config.budgets), ("seeds", config.seeds)):
        _check_once(name, known)
    for name in (*config.rows, *config.tasks):
        if not str(name).strip():
            raise SubspaceError("a row or a task has an empty name: give it one")
    _check_sections(config)
    _check_seeds("seeds", config.seeds)
    _check_shared(config)
    if config.tuning is not None:
        _check_tuning(config.tuning, config.seeds)
    return config


def _check_sections(config: CompareConfig) -> None:
    for name, values in {"rows": config.rows, "tasks": config.tasks}.items():
        for key, value in values.items():
            if value is not None and not isinstance(value, dict):
                raise SubspaceError(f"{name}.{key} is {reprlib.repr(value)}: it must have keys with values")
    for key, value in config.base.items():
        if key not in _SHARED:
            raise SubspaceError(f"base.{key} is not shared by runs: {nearest(str(key), _SHARED)}")
        if key != "quantise" and value is not None and not isinstance(value, dict):
            raise SubspaceError(f"base.{key} is {reprlib.repr(value)}: it must have keys with values")


def _check_shared(config: CompareConfig) -> None:
    """Refuse keys that the comparison itself sets."""
    shared = config.base.get("training") or {}
    own = {f"rows.{name}.training": (row or {}).get("training") or {} for name, row in config.rows.items()}
    for where, training in {"base.training": shared, **own}.items():
        if not isinstance(training, dict):
            raise SubspaceError(f"{where} is {reprlib.repr(training)}: it must have keys with values")
        if "seed" in training:
            raise SubspaceError(f"{where}.seed is set by the comparison: leave it out, and give seeds")
        if "learning_rate" in training and config.tuning is not None:
            raise SubspaceError(f"{where}.learning_rate is tuned: leave it out, or give tuning.rates.around")
    tasks = {"base.task": config.base.get("task") or {}, **{f"tasks.{n}": t or {} for n, t in config.tasks.items()}}
    for where, task in tasks.items():
        if "tuning_split" in task:
            raise SubspaceError(f"{where}.tuning_split is set by the comparison: give tuning.split")


def _check_tuning(tuning: TuningSection, reported: Sequence[int]) -> None:
    sections: dict[str, Any] = {"tuning": tuning, "tuning.rates": tuning.rates}
    for name, section in sections.items():
        for known in settings(SECTIONS[name]):
            value = getattr(section, known.name)
            if known.range is not None and value not in known.range:
                raise SubspaceError(f"{name}.{known.name} is {reprlib.repr(value)}: it must be {known.range}")
    if not tuning.seeds:
        raise SubspaceError("tuning.seeds is empty: give at least one seed, or tuning=null")
    _check_once("tuning.seeds", tuning.seeds)
    _check_seeds("tuning.seeds", tuning.seeds)
    if both := sorted(set(tuning.seeds) & set(reported)):
        raise SubspaceError(f"seed {both[0]} is in tuning.seeds and in seeds: runs that choose a rate are not reported")
    rates = tuning.rates
    if rates.tries < 2:
        raise SubspaceError(f"tuning.rates.tries is {rates.tries}: a grid of one rate chooses nothing; give 2 or more")
    if not 1 < rates.factor < math.inf:
        raise SubspaceError(f"tuning.rates.factor is {rates.factor:g}: the grid would be one rate; give more than 1")
    check_rate("tuning.rates.around", rates.around)


def check_rate(where: str, rate: Any) -> None:
    """Raise SubspaceError if a value is neither a positive number nor "derived"."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if rate != DERIVED and not (number and 0 < rate < math.inf):
        raise SubspaceError(f"{where} is {reprlib.repr(rate)}: it must be {DERIVED} or a positive number")


def _check_once(name: str, values: Iterable[Any]) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise SubspaceError(f"{name} has {value!r} twice")
        seen.append(value)


def _check_seeds(name: str, seeds: Iterable[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < _SEED:
            raise SubspaceError(f"{name} has {seed}: a seed is from 0 to {_SEED - 1:,}")


def check_budget(budget: Any) -> None:
    """Raise SubspaceError if a budget is neither null, nor a positive whole number, nor a text."""
    number = isinstance(budget, int) and not isinstance(budget, bool) and budget in COUNT
    if budget is not None and not number and not isinstance(budget, str):
        raise SubspaceError(f"budgets has {budget!r}: a budget is a number such as 300k, a share such as 1%, or null")
