"""Folders that belong to a job: one process at a time, and one description for everything in them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import SubspaceError
from ..files import is_temporary, write_json
from .description import Description, difference, digest
from .fields import read_object


class AtWorkError(SubspaceError):
    """Raised if another process is at work in a folder."""


LOCK = "lock"
"""The file locked by the working process. It is never removed: removing a free lock would let two processes in."""

JOB = "job.json"
"""The description of the job whose results a folder holds."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other processes out of it during the body. The lock is released however the process ends.

    Raises:
        SubspaceError: the folder cannot be made.
        AtWorkError: another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise AtWorkError(f"another process is at work in {folder}") from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise SubspaceError(f"output folder {folder} cannot be made: {reason}") from error
    try:
        yield
    finally:
        lock.release()


def is_vacant(folder: Path) -> bool:
    """Return whether a folder is empty except for a lock and the unfinished files of killed processes."""
    return not folder.is_dir() or all(entry.name == LOCK or is_temporary(entry) for entry in folder.iterdir())


def claim(file: Path, description: Description, hint: str, ignoring: Collection[str] = ()) -> None:
    """Write the description of a job, or resume the job that has the same one.

    Args:
        file: the description's file in the job's folder.
        description: the job.
        hint: the way out if the folder belongs to another job.
        ignoring: keys of the description that may change.

    Raises:
        SubspaceError: the folder belongs to another job; the message names the difference.
    """
    before = read_object(file, hint)
    if before is None:
        write_json(file, description)
    elif change := difference(before, description, ignoring):
        raise SubspaceError(f"{file.parent}: the run cannot be resumed: {change}; {hint}")


@contextmanager
def owned(folder: Path, description: Description) -> Iterator[None]:
    """Lock a folder that keeps the results of one job.

    Raises:
        SubspaceError: the folder holds something else, or another process is working in it.
    """
    with alone(folder):
        if not (folder / JOB).exists() and not is_vacant(folder):
            raise SubspaceError(f"output folder {folder} is not empty and has no results: choose another")
        claim(folder / JOB, description, "choose another folder")
        yield


@contextmanager
def parts(output: Path, description: Description) -> Iterator[Path]:
    """Yield a folder for the parts of a job whose result goes to ``output``; remove it when the body is done.

    If the body does not finish, the parts stay, and the next call with the same description finds them. The folder is
    named by the description's digest, so another description finds none.

    Raises:
        SubspaceError: the folder cannot be made, or another process is working on the same output.
    """
    folder = output.with_name(f"{output.name}.part")
    with alone(folder):
        own = folder / digest(description)
        own.mkdir(exist_ok=True)
        done = False
        try:
            yield own
            done = True
        finally:
            if done or not any(folder.glob("*/*")):
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # including the lock, while still held: nobody else can take it
