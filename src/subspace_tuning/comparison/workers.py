"""Several workers on this machine, each a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import select

from ..errors import SubspaceError
from ..jobs.units import end_with_parent
from . import leases
from .database import Database
from .leases import Lease
from .owners import is_process
from .schema import RUNNING, runs
from .work import Working, work

_DEATHS = 3
"""How many workers may end while they make one run; after that it has failed."""


def work_apart(database: Database, how: Working, count: int, on_wait: Callable[[], object] = lambda: None) -> None:
    """Make the runs of a store in several processes, and replace those that end, such as by lack of memory.

    Args:
        database: the store.
        how: how each worker works.
        count: the number of processes.
        on_wait: called several times per second.

    Raises:
        SubspaceError: a worker cannot go on, such as because the disk is full.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    ends: dict[BaseProcess, Connection] = {}
    deaths: Counter[str] = Counter()

    def start() -> None:
        end, other = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(str(database.path), how, other), daemon=True)
        process.start()
        other.close()
        ends[process] = end

    for _ in range(count):
        start()
    try:
        while ends:
            time.sleep(0.1)
            on_wait()
            for process in [one for one in ends if not one.is_alive()]:
                end = ends.pop(process)
                _raise_reported(end)
                if process.exitcode != 0:
                    _mourn(database, process, deaths)
                    start()
    finally:
        for process in ends:
            process.terminate()
        for process in ends:
            process.join()


def _raise_reported(end: Connection) -> None:
    """Raise what a worker reported before it ended."""
    try:
        message = end.recv_bytes().decode() if end.poll() else ""
    except EOFError:
        message = ""
    if message:
        raise SubspaceError(message)


def _mourn(database: Database, process: BaseProcess, deaths: Counter[str]) -> None:
    """Count the death of a worker against the run that it held, and let the run wait again or fail."""
    with database.read() as connection:
        running = connection.execute(select(runs.c.id, runs.c.owner).where(runs.c.state == RUNNING)).all()
    held = [Lease(run, {}, owner) for run, owner in running if is_process(owner, process.pid)]
    deaths.update(lease.run for lease in held)
    deaths[""] += not held
    if deaths[""] >= _DEATHS:
        raise SubspaceError(f"workers end with code {process.exitcode} before they begin: see what they print")
    for lease in held:
        if deaths[lease.run] < _DEATHS:
            leases.release(database, lease)
        else:
            why = f"{_DEATHS} workers ended while they made it, the last with code {process.exitcode}"
            leases.fail(database, lease, f"{why}: there may not be enough memory; use fewer workers")


def _worker(path: str, how: Working, report: Connection) -> None:
    end_with_parent()
    warnings.filterwarnings("ignore", module="transformers|peft|torch")
    try:
        work(Database(Path(path), create=True), how)
    except KeyboardInterrupt:
        sys.exit(130)
    except SubspaceError as error:
        report.send_bytes(str(error).encode())
