"""The output folder of a run: what state it is in, and writing that leaves no half-made file.

started.json    the config and the data's fingerprints, from the start
checkpoints/    while the run lasts
adapter/        the result; `model/` where no adapter was trained
run.json        the record; its presence says that the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SubspaceError

_STARTED = "started.json"
_RECORD = "run.json"
_CHECKPOINTS = "checkpoints"
RESULTS = ("adapter", "model")
"""The names that a result may have; a run makes one of them."""


class RunFolder:
    """The folder at `path`, which need not exist yet. Nothing is written before `open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.checkpoints = self.path / _CHECKPOINTS

    def record(self) -> dict[str, Any] | None:
        """The record of the finished run, None if there is none."""
        return _read_json(self.path / _RECORD)

    def check(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuses a folder that cannot take the run of `config`.

        Raises:
            SubspaceError: the folder cannot be written, holds other files, or holds a run of another config.
        """
        self._check_writable()
        started = _read_json(self.path / _STARTED)
        if started is None:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise SubspaceError(f"output folder {self.path} is not empty and holds no run: choose another")
        elif not overwrite and (change := _difference(started["config"], config)):
            raise SubspaceError(
                f"{self.path} holds a run of another config: {change}; choose another output or --overwrite"
            )

    def _check_writable(self) -> None:
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not existing.is_dir():
            raise SubspaceError(f"output folder {self.path} cannot be made: {existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise SubspaceError(f"output folder {self.path} is not writable")

    @contextmanager
    def open(self, started: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Makes the folder, or takes up the run in it, and keeps other processes out meanwhile.

        Args:
            started: what is to be known of a run from its start: "config", and more that must not change.
            overwrite: throw away what is there of a run.

        Raises:
            SubspaceError: the folder cannot be made, another process is at work in it, or the data have changed.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SubspaceError(f"output folder {self.path} cannot be made: {error.strerror}") from error
        try:
            with FileLock(self.checkpoints / "lock", timeout=0):
                if overwrite:
                    self._clear()
                before = _read_json(self.path / _STARTED)
                if before is None:
                    write_json(self.path / _STARTED, started)
                elif change := _difference(before, started):
                    raise SubspaceError(f"{self.path}: the run cannot go on: {change}; --overwrite starts anew")
                yield
        except Timeout:
            raise SubspaceError(f"another process is at work in {self.path}") from None

    def _clear(self) -> None:
        for name in (_RECORD, _STARTED):
            (self.path / name).unlink(missing_ok=True)
        for result in RESULTS:
            shutil.rmtree(self.path / result, ignore_errors=True)
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; those that an interruption left half-written are removed."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for checkpoint in reversed(found):
            if _read_json(checkpoint / "trainer_state.json") is not None:  # the file that the Trainer writes last
                return checkpoint
            shutil.rmtree(checkpoint)
        return None

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes the record, and removes the checkpoints, which nothing needs any more."""
        write_json(self.path / _RECORD, record)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` so that at any moment either the old file is there or the whole new one."""
    with written(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write into, which takes the place of `path` at the end."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write into, which takes the place of `path` at the end."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first value that differs, in words; the output's own name does not count, since a folder may be moved."""
    old, new = _flat(before), _flat(now)
    for key in sorted((old.keys() | new.keys()) - {"output", "config.output"}):
        if old.get(key) != new.get(key):
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} now"
    return None


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
