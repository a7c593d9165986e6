"""A worker: it takes one run after the other from a store, trains it, and commits what comes of it."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ..errors import SubspaceError, described
from ..jobs.folder import AtWorkError
from ..provenance import reset_peak_memory
from ..training.config import from_values
from ..training.folder import PREDICTIONS
from ..training.run import Outcome, run
from ..training.trainer import DivergedError
from . import leases
from .database import Database
from .identity import code
from .leases import WHOLE, Lease, Result, Shard
from .owners import new_owner
from .planning import code_of
from .schema import DONE, runs

_PAUSE = 0.5  # seconds between two looks for a run, while others work on the last ones
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_ABOUT_A_FULL_DISK = (
    "no space left",
    "disk is full",
    "file too large",
    "quota exceeded",
    "read-only file system",
    # What torch.save says instead of the system's reason.
    "pytorchstreamwriter failed",
    "unexpected pos",
)


@dataclass(frozen=True)
class Working:
    """How a worker works.

    Attributes:
        shard: the part of the comparison that it takes runs from.
        keep: whether the folders of finished runs are kept.
        seconds: how long a lease lasts without a heartbeat.
    """

    shard: Shard = WHOLE
    keep: bool = False
    seconds: float = leases.SECONDS


def folder_of(database: Database, run: str, kind: str = "runs") -> Path:
    """Return the folder in which a run is made, or, of kind "kept", in which it stays."""
    return _beside(database, kind) / run[:32]


def _beside(database: Database, kind: str) -> Path:
    return database.path.with_name(f"{database.path.name}.{kind}")


def work(database: Database, how: Working = Working()) -> None:
    """Make runs until none is left in the shard, also of those that other workers hold and may lose.

    Raises:
        SubspaceError: the store or the folder of runs cannot be written, or the store was made with other code.
    """
    with database.read() as connection:
        if (made := code_of(connection)) != code():
            names = [name for name in sorted(made.keys() | code().keys()) if made.get(name) != code().get(name)]
            raise SubspaceError(
                f"store {database.path} was planned with another version ({', '.join(names)}): run `subspace compare` "
                "with its config again"
            )
    owner = new_owner()
    with _silent():
        while (lease := leases.claim(database, owner, how.shard, how.seconds)) or leases.left(database, how.shard):
            if lease is None or not _perform(database, lease, how):
                time.sleep(_PAUSE)


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what a run says about its data and its precision, which every run of a task would repeat."""
    logger = logging.getLogger(__name__.partition(".")[0])
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def tidy(database: Database, *, keep: bool = False) -> None:
    """Clear away the folders of runs that are done, which a worker that was killed has left."""
    found = _beside(database, "runs")
    names = {path.name for path in found.iterdir()} if found.is_dir() else set()
    if names:
        with database.read() as connection:
            done = connection.execute(select(runs.c.id).where(runs.c.state == DONE)).scalars().all()
        for name in done:
            if name[:32] in names:
                _clear(database, name, keep)


def _clear(database: Database, name: str, keep: bool) -> None:
    """Remove a run's folder, or move it to those that are kept; another process may do the same."""
    folder, kept = folder_of(database, name), folder_of(database, name, "kept")
    with suppress(OSError):
        if keep:
            kept.parent.mkdir(exist_ok=True)
            folder.rename(kept)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.parent.rmdir()  # unless there are others


def _perform(database: Database, lease: Lease, how: Working) -> bool:
    """Make a run; return whether it ended. Whatever happens, the lease ends."""
    folder = folder_of(database, lease.run)
    ended: Result | Exception
    try:
        with leases.heartbeat(database, lease, how.seconds):
            ended = _train(lease, folder)
    except AtWorkError:  # a worker that has lost its lease is still in the folder
        leases.release(database, lease)
        return False
    except Exception as error:
        if _is_of_the_disk(error):
            _release(database, lease)
            where = f"the run in {folder} cannot be written: {described(error)}"
            raise SubspaceError(f"{where}; make room, and call again") from error
        ended = error
    except BaseException:
        _release(database, lease)
        raise
    if not _commit(database, lease, ended):
        return False
    _clear(database, lease.run, how.keep and isinstance(ended, Result))
    return True


def _commit(database: Database, lease: Lease, ended: Result | Exception) -> bool:
    """Record how a run ended; return whether its lease was still held.

    Until it is recorded, its folder stays, and its next worker finds it finished.
    """
    try:
        if isinstance(ended, Result):
            return leases.finish(database, lease, ended)
        return leases.fail(database, lease, _line(ended), diverged=isinstance(ended, DivergedError))
    except BaseException:
        _release(database, lease)
        raise


def _train(lease: Lease, folder: Path) -> Result:
    config = from_values("the store", {**lease.config, "output": str(folder)})
    reset_peak_memory()
    return _result(run(config, progress=False, predictions=True), folder)


def _result(outcome: Outcome, folder: Path) -> Result:
    record = outcome.record
    best = record["config"]["training"]["keep"] == "best"
    figures = record["best" if best else "final"]
    return Result(
        metric=record["metric"],
        score=record["score"],
        scores={name: figure for name, figure in figures.items() if isinstance(figure, (int, float))},
        trained=record["parameters"]["adapter"],
        head=record["parameters"]["head"],
        seconds=record["seconds"],
        memory=record["peak_memory_mib"],
        curve=[(step, loss) for step, loss in record["losses"] if loss is not None],
        outcome=json.dumps(json.loads((folder / PREDICTIONS).read_text(encoding="utf-8")), separators=(",", ":")),
    )


def _release(database: Database, lease: Lease) -> None:
    """Release a lease if the store can be written; otherwise the end of this process does."""
    with suppress(SubspaceError):
        leases.release(database, lease)


def _is_of_the_disk(error: BaseException) -> bool:
    """Return whether an error is that of a disk which takes no more, whichever library reports it."""
    return any(
        (isinstance(one, OSError) and one.errno in _FULL)
        or any(words in str(one).lower() for words in _ABOUT_A_FULL_DISK)
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: Any = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: Exception) -> str:
    own = isinstance(error, (SubspaceError, OSError))
    return described(error) if own else f"{type(error).__name__}: {described(error)}"
