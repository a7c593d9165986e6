"""Taking finished runs from another store, such as that of a shard made on another host."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from .database import Database
from .schema import DONE, outcomes, runs


def take_runs(database: Database, other: Database) -> int:
    """Copy the runs of another store that are done there and not here; return how many.

    A run is known by its content, so it is the same run in both. Those of a comparison that is being made here keep
    their results: a worker that ends such a run finds its lease gone.
    """
    with other.read() as connection:
        found = connection.execute(select(runs).where(runs.c.state == DONE)).mappings().all()
        kept = {one.run: one.content for one in connection.execute(select(outcomes))}
    count = 0
    with database.write() as connection:
        here = set(connection.execute(select(runs.c.id).where(runs.c.state == DONE)).scalars())
        for one in found:
            if one["id"] in here:
                continue
            values = {name: value for name, value in one.items() if name != "number"}
            made = insert(runs).values(values)
            connection.execute(made.on_conflict_do_update(["id"], set_=values))
            if one["id"] in kept:
                content = insert(outcomes).values(run=one["id"], content=kept[one["id"]])
                connection.execute(content.on_conflict_do_nothing())
            count += 1
    return count
