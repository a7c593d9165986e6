"""Jobs of many independent units: each result is written as soon as it is there, and none is computed twice."""

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
from ..provenance import KEYS, provenance
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
    on_result: Callable[[str, Result], object] = lambda name, result: None,
) -> dict[str, Result]:
    """Measure the units that have no result yet, and return all results as read from their files.

    Args:
        folder: gets ``NAME.json`` for each unit, with date, machine and versions beside what ``measure`` returns. It
            must be locked (``owned``, ``parts``).
        units: by name, which is also the file name.
        measure: returns a unit's result, an object for JSON.
        workers: how many units at a time, each in its own process; ``measure`` and the units must then be picklable.
            0: one after another in this process.
        on_result: called with each new result, as returned by ``measure``.

    Raises:
        SubspaceError: a result cannot be read, or units failed in their processes; the others are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = kept(folder, units)
    missing = {name: unit for name, unit in units.items() if name not in found}

    def keep(name: str, result: Result) -> None:
        write_json(folder / f"{name}.json", result)
        found.update(kept(folder, [name]))
        on_result(name, _without_provenance(found[name]))

    if workers:
        _apart(missing, measure, workers, keep)
    else:
        for name, unit in missing.items():
            keep(name, _recorded(measure, unit))
    return {name: found[name] for name in units}


def kept(folder: Path, names: Iterable[str]) -> dict[str, Result]:
    """Return the existing results, sorted by name.

    Raises:
        SubspaceError: a result is damaged.
    """
    read = ((name, read_object(folder / f"{name}.json", "remove it to compute it again")) for name in names)
    return {name: result for name, result in read if result is not None}


@contextmanager
def measured(
    output: Path,
    description: Description,
    units: Mapping[str, Unit],
    measure: Measure[Unit],
    on_result: Callable[[str, Result], object] = lambda name, result: None,
) -> Iterator[dict[str, Result]]:
    """Yield the results of all units, which the body writes to ``output`` as one.

    Until then they are kept as parts, and the next call resumes from them. Date, machine and versions are left out:
    ``output`` has them once.
    """
    with parts(output, description) as folder:
        found = perform(folder, units, measure, on_result=on_result)
        yield {name: _without_provenance(one) for name, one in found.items()}


def _recorded(measure: Measure[Unit], unit: Unit) -> Result:
    result = measure(unit)
    return provenance() | dict(result)


def _without_provenance(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in KEYS}


def _apart(
    units: Mapping[str, Unit], measure: Measure[Unit], workers: int, keep: Callable[[str, Result], None]
) -> None:
    """Measure each unit in a new process, so that a failure does not lose the others' work."""
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
        raise SubspaceError(f"{len(failed)} of {len(units)} failed: {names}; the same call retries them")


def _in_process(measure: Measure[Unit], unit: Unit) -> Result:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(1, context, initializer=end_with_parent) as pool:
        return pool.submit(_recorded, measure, unit).result()


def end_with_parent() -> None:
    """End this process if its parent is killed and can no longer end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
