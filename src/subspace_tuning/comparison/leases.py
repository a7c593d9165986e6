"""Who works on which run. A lease expires unless its heartbeat renews it, so that a dead worker's run is taken up.

Each function is one transaction. Only the owner of a lease can end its run.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, select

from .database import Database
from .owners import end_lost
from .planning import advance
from .repeating import repeated
from .schema import DONE, FAILED, RUNNING, WAITING, cells, outcomes, places, runs

SECONDS = 60.0
"""How long a lease lasts without a heartbeat; the heartbeat comes four times as often."""


@dataclass(frozen=True)
class Shard:
    """The cells of one of several calls that share a comparison: those whose number leaves ``index`` modulo ``count``.

    The runs that choose a rate and those that report it are in the same shard, so shards wait for nothing.
    """

    index: int = 0
    count: int = 1


WHOLE = Shard()
"""All cells."""


@dataclass(frozen=True)
class Lease:
    """A run that belongs to a worker for the time being."""

    run: str
    config: Mapping[str, Any]
    owner: str


@dataclass(frozen=True)
class Result:
    """What a finished run leaves in the store; ``outcome`` has its predictions and references as JSON."""

    metric: str
    score: float
    scores: Mapping[str, float]
    trained: int
    head: int
    seconds: float
    memory: float
    curve: list[tuple[int, float]]
    outcome: str = field(repr=False)


def claim(database: Database, owner: str, shard: Shard = WHOLE, seconds: float = SECONDS) -> Lease | None:
    """Return a run that waits, or whose lease was lost, and lease it; None if there is none at the moment."""
    with database.write() as connection:
        end_lost(connection)
        query = _of(shard).where(runs.c.state == WAITING).order_by(runs.c.number).limit(1)
        found = connection.execute(query).first()
        if found is None:
            return None
        leased = {"state": RUNNING, "owner": owner, "expires": time.time() + seconds}
        connection.execute(runs.update().where(runs.c.id == found.id).values(leased))
        return Lease(found.id, json.loads(found.config), owner)


def left(database: Database, shard: Shard = WHOLE) -> bool:
    """Return whether a run waits or is being worked on."""
    with database.read() as connection:
        query = _of(shard).where(runs.c.state.in_((WAITING, RUNNING))).limit(1)
        return connection.execute(query).first() is not None


def renew(database: Database, lease: Lease, seconds: float = SECONDS) -> bool:
    """Renew a lease; return whether it still belongs to its owner."""
    with database.write() as connection:
        found = connection.execute(runs.update().where(_held(lease)).values(expires=time.time() + seconds))
        return found.rowcount == 1


def release(database: Database, lease: Lease) -> None:
    """Let the run of a lease wait for another worker."""
    with database.write() as connection:
        connection.execute(runs.update().where(_held(lease)).values(state=WAITING, owner=None, expires=None))


def finish(database: Database, lease: Lease, result: Result) -> bool:
    """Record a result, and place the runs that follow from it; return whether the lease was still held."""
    values = {
        "metric": result.metric,
        "score": result.score,
        "scores": json.dumps(dict(result.scores), sort_keys=True),
        "trained": result.trained,
        "head": result.head,
        "seconds": result.seconds,
        "memory": result.memory,
        "curve": json.dumps(result.curve),
    }
    return _end(database, lease, values | {"state": DONE}, zlib.compress(result.outcome.encode(), 9))


def fail(database: Database, lease: Lease, error: str, *, diverged: bool = False) -> bool:
    """Record that a run failed, and place the runs that follow from it; return whether the lease was still held."""
    return _end(database, lease, {"state": FAILED, "error": error, "diverged": int(diverged)}, None)


def _end(database: Database, lease: Lease, values: Mapping[str, Any], outcome: bytes | None) -> bool:
    ended = {"owner": None, "expires": None, "finished": time.time()}
    with database.write() as connection:
        if connection.execute(runs.update().where(_held(lease)).values({**values, **ended})).rowcount != 1:
            return False
        if outcome is not None:
            connection.execute(outcomes.insert().values(run=lease.run, content=outcome))
        advance(connection, lease.run)
        return True


@contextmanager
def heartbeat(database: Database, lease: Lease, seconds: float = SECONDS) -> Iterator[None]:
    """Renew a lease in a thread during the body."""
    with repeated(lambda: renew(database, lease, seconds), seconds / 4):
        yield


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(runs.c.id == lease.run, runs.c.owner == lease.owner, runs.c.state == RUNNING)


def _of(shard: Shard) -> Select[Any]:
    """Return the query of the runs of a shard's cells."""
    own = select(places.c.run).join_from(places, cells, places.c.cell == cells.c.id)
    if shard.count > 1:
        own = own.where(cells.c.id % shard.count == shard.index)
    return select(runs).where(runs.c.id.in_(own))
