"""Atomic writes of files and folders: whole or not at all, even if the process is killed half-way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .errors import SubspaceError

_NAME = 40  # characters of a name kept in its temporary neighbour's: a longer name may be legal, a longer neighbour not


def check_file(path: Path, overwrite: bool = True) -> Path:
    """Return the path if a file can be written there.

    Raises:
        SubspaceError: the path is a folder, its parent is not one or is not writable, or the file exists and
            ``overwrite`` is False.
    """
    path = path.expanduser()
    parent = path.absolute().parent
    if path.is_dir():
        raise SubspaceError(f"output {str(path)!r} is a folder: name a file")
    if not parent.is_dir():
        raise SubspaceError(f"the folder of {path} {'is a file' if parent.exists() else 'does not exist'}")
    if path.exists() and not overwrite:
        raise SubspaceError(f"{path} exists: choose another --output, or give --overwrite")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise SubspaceError(f"the folder of {path} is not writable")
    return path


def check_folder(path: Path) -> Path:
    """Return the path if a folder exists or can be created there. Raises SubspaceError otherwise."""
    path = path.expanduser()
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        behind = "" if existing == path.absolute() else f": {existing} is a file"
        raise SubspaceError(f"output {str(path)!r} {'cannot be made' if behind else 'is a file'}{behind}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SubspaceError(f"output {str(path)!r} is not writable")
    return path


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that at any moment either the old file or the whole new one exists."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` so that at any moment either the old file or the whole new one exists."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write into; it replaces `path` at the end."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_leftovers(path)
    temporary = _beside(path, f"{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to write into; it replaces `path` at the end.

    No system call swaps two folders on every platform, so the old one is moved aside first. A process killed in between
    leaves both, and the next call of ``replaced`` or ``recover`` restores the old one.
    """
    path = path.resolve()
    recover(path)
    temporary, aside = _beside(path, f"{os.getpid()}.tmp"), _beside(path, "old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            recover(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(path: Path) -> None:
    """Restore or remove what a process that was killed while replacing `path` has left beside it."""
    path = path.resolve()
    aside = _beside(path, "old")
    if aside.is_dir():
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(path)
    _remove_leftovers(path)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name[:_NAME]}.{end}")


def is_temporary(path: Path) -> bool:
    """Return whether a name is that of an unfinished file or folder of `written` or `replaced`."""
    return re.fullmatch(r"\..*\.[0-9]{1,9}\.tmp", path.name) is not None


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of processes that no longer run."""
    pattern = re.compile(rf"\.{re.escape(path.name[:_NAME])}\.([0-9]{{1,9}})\.tmp")
    if not path.parent.is_dir():
        return
    for entry in path.parent.iterdir():
        found = pattern.fullmatch(entry.name)
        if found and not psutil.pid_exists(int(found[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _sync(path: Path) -> None:
    """Flush a file to disk. Windows allows that only for files open for writing."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
