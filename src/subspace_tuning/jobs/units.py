"""A job of many units that do not need each other: each result is written as it comes, and none is made twice."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from ..errors import SubspaceError
from ..files import write_json
from ..provenance import CIRCUMSTANCES, circumstances
from .description import Description
from .fields import read_object
from .folder import parts

Unit = TypeVar("Unit")
Result = dict[str, Any]
Measure = Callable[[Unit], Mapping[str, Any]]


def perform(
    folder: Path,
    units: Mapping[str, Unit],
    measure: Measure[Unit],
    *,
    workers: int = 0,
    told: Callable[[str, Result], object] = lambda name, result: None,
) -> dict[str, Result]:
    """Measure the units that have no result yet, and return the results of all, as they were read from their files.

    Args:
        folder: gets ``NAME.json`` for each unit, with date, machine and versions beside what ``measure`` returns. It
            must be locked (``owned``, ``parts``).
        units: by name, which is that of a file.
        measure: makes a unit's result, an object for JSON.
        workers: how many units at a time, each in a process of its own; ``measure`` and units must be picklable then.
            0: one after another in this process.
        told: called with each new result, as ``measure`` gave it.

    Raises:
        SubspaceError: a result cannot be read, or units failed in their processes; the others are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = kept(folder, units)
    missing = {name: unit for name, unit in units.items() if name not in found}

    def keep(name: str, result: Result) -> None:
        write_json(folder / f"{name}.json", result)
        found.update(kept(folder, [name]))
        told(name, _without_circumstances(found[name]))

    if workers:
        _apart(missing, measure, workers, keep)
    else:
        for name, unit in missing.items():
            keep(name, _recorded(measure, unit))
    return {name: found[name] for name in units}


def kept(folder: Path, names: Iterable[str]) -> dict[str, Result]:
    """Return the results that are there, in the order of their names.

    Raises:
        SubspaceError: a result is damaged.
    """
    read = ((name, read_object(folder / f"{name}.json", "remove it to have it made again")) for name in names)
    return {name: result for name, result in read if result is not None}


@contextmanager
def measured(
    output: Path,
    description: Description,
    units: Mapping[str, Unit],
    measure: Measure[Unit],
    told: Callable[[str, Result], object] = lambda name, result: None,
) -> Iterator[dict[str, Result]]:
    """Give the results of all units, which the body is to write into ``output`` as one.

    Until then they are parts of it, and the next call goes on from them. Date, machine and versions are left out:
    ``output`` has them once.
    """
    with parts(output, description) as folder:
        found = perform(folder, units, measure, told=told)
        yield {name: _without_circumstances(one) for name, one in found.items()}


def _recorded(measure: Measure[Unit], unit: Unit) -> Result:
    result = measure(unit)
    return circumstances() | dict(result)


def _without_circumstances(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in CIRCUMSTANCES}


def _apart(
    units: Mapping[str, Unit], measure: Measure[Unit], workers: int, keep: Callable[[str, Result], None]
) -> None:
    """Measure each unit in a new process. One that fails does not take the others' hours with it."""
    failed = []
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_in_process, measure, unit): name for name, unit in units.items()}
        try:
            for future in as_completed(futures):
                error, name = future.exception(), futures[future]
                if error is None:
                    keep(name, future.result())
                elif isinstance(error, Exception):
                    failed.append(name)
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
                else:
                    raise error
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        names = ", ".join(failed)
        raise SubspaceError(f"{len(failed)} of {len(units)} failed: {names}; the same call tries them again")


def _in_process(measure: Measure[Unit], unit: Unit) -> Result:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(1, context, initializer=_end_with_parent) as pool:
        return pool.submit(_recorded, measure, unit).result()


def _end_with_parent() -> None:
    """Let this process end when the one that started it is killed, and cannot end it any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
