"""The owners of leases: processes by their machine, and which of them have ended."""

from __future__ import annotations

import os
import platform
import time
import uuid

import psutil
from sqlalchemy import Connection, and_, or_, select

from .schema import RUNNING, WAITING, runs

_TOLERANCE = 2.0  # seconds


def new_owner() -> str:
    """Return the name of a worker in this process: machine, process, its start, and a number of its own."""
    process = psutil.Process()
    return f"{platform.node()} {process.pid} {process.create_time()!r} {uuid.uuid4().hex[:8]}"


def end_lost(connection: Connection) -> None:
    """Let runs wait again whose lease has expired, or whose process on this machine has ended."""
    held = connection.execute(select(runs.c.owner).where(runs.c.state == RUNNING).distinct()).scalars()
    gone = [owner for owner in held if owner is None or is_gone(owner)]
    lost = or_(runs.c.expires < time.time(), runs.c.owner.in_(gone), runs.c.owner.is_(None))
    connection.execute(
        runs.update().where(and_(runs.c.state == RUNNING, lost)).values(state=WAITING, owner=None, expires=None)
    )


def is_gone(owner: str) -> bool:
    """Return whether a worker's process, on this machine, has ended."""
    machine, pid, start, _ = owner.rsplit(" ", 3)
    if machine != platform.node():
        return False
    if int(pid) == os.getpid():
        return False
    try:
        process = psutil.Process(int(pid))
        # Two processes may read the same start a little differently, if the clock was set in between.
        another = abs(process.create_time() - float(start)) > _TOLERANCE
        return another or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def is_process(owner: str, pid: int | None) -> bool:
    """Return whether a worker is in this process of this machine."""
    machine, own, *_ = owner.rsplit(" ", 3)
    return machine == platform.node() and own == str(pid)
