"""The output folder of a run: a job's folder with checkpoints and a result.

lock               held by the working process
started.json       the config and the data's fingerprints, from the start
checkpoints/       while the run is unfinished
logs/              TensorBoard's files, if requested
adapter/           the result; `model/` if no adapter was trained
predictions.json   the predictions and references, if requested
run.json           the record; it exists once the run is finished
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SubspaceError
from ..files import recover, write_json, write_text
from ..jobs.description import difference
from ..jobs.fields import Fields, read_object
from ..jobs.folder import LOCK, alone, claim, is_vacant

_STARTED = "started.json"
_RECORD = "run.json"
PREDICTIONS = "predictions.json"
_CHECKPOINTS = "checkpoints"
_LOGS = "logs"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")
RESULTS = ("adapter", "model")
"""The possible names of a result; a run makes one of them."""

_ANEW = "--overwrite starts again"
_MOVABLE = ("output",)  # the folder's own name is ignored: it may be moved
_STARTED_FIELDS: Fields = {"config": {}}
_RECORD_FIELDS: Fields = {
    "config": {"training": {"precision": str}},
    "task": str,
    "method": str,
    "metric": str,
    "score": float,
    "score_interval": list,
    "baseline_score": float,
    "parameters": {"adapter": int, "head": int, "per_mille": float},
    "precision": str,
    "steps": int,
    "seconds": float,
    "date": str,
    "result": RESULTS,
}


class RunFolder:
    """The folder at `path`, which need not exist yet. Nothing is written before `open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.checkpoints = self.path / _CHECKPOINTS
        self.logs = self.path / _LOGS

    def record(self) -> dict[str, Any] | None:
        """Return the record of the finished run, or None if there is none.

        Raises:
            SubspaceError: the record is damaged, or its result is gone.
        """
        record = read_object(self.path / _RECORD, _ANEW, _RECORD_FIELDS)
        if record is not None and not (self.path / record["result"]).is_dir():
            raise SubspaceError(f"{self.path} holds a finished run, but {record['result']}/ is gone: {_ANEW}")
        return record

    def check(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse a folder that cannot be used for the run of `config`.

        Raises:
            SubspaceError: the folder cannot be written, holds other files, or holds a run of another config.
        """
        self._check_writable()
        self._check_kinds()
        if not (self.path / _STARTED).is_file():
            if not is_vacant(self.path):
                raise SubspaceError(f"output folder {self.path} is not empty and has no run: choose another")
            return
        if overwrite:
            return
        started = read_object(self.path / _STARTED, _ANEW, _STARTED_FIELDS)
        if started is not None and (change := difference(started["config"], config, _MOVABLE)):
            raise SubspaceError(
                f"{self.path} holds a run of another config: {change}; choose another output or --overwrite"
            )

    def check_shared(self) -> None:
        """Refuse an open folder that this process does not see, because it is on another host."""
        if not (self.path / _STARTED).is_file():
            raise SubspaceError(
                f"output folder {self.path} is not seen by every process: choose one that all hosts share"
            )

    def _check_writable(self) -> None:
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not existing.is_dir():
            raise SubspaceError(f"output folder {self.path} cannot be made: {existing} is a file")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise SubspaceError(f"output folder {self.path} is not writable")

    def _check_kinds(self) -> None:
        """Refuse a folder in place of a file of the run, or the reverse, which would make the run fail at its end."""
        for name in (LOCK, _STARTED, _RECORD):
            if (self.path / name).is_dir():
                raise SubspaceError(f"{self.path / name} is a folder, where the run writes a file: choose another")
        for name in (_CHECKPOINTS, _LOGS, *RESULTS):
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise SubspaceError(f"{self.path / name} is a file, where the run makes a folder: choose another")

    @contextmanager
    def open(self, started: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Make the folder, or resume the run in it, and keep other processes out during the body.

        Another process may have finished the run since `record` was read: read it again in the body.

        Args:
            started: the data recorded at the start of a run: "config", and more that must not change.
            overwrite: discard an earlier run.

        Raises:
            SubspaceError: the folder cannot be made, another process is at work in it, or the data have changed.
        """
        with alone(self.path):
            if overwrite:
                self._clear()
            for result in RESULTS:
                recover(self.path / result)
            claim(self.path / _STARTED, started, _ANEW, {f"config.{name}" for name in _MOVABLE})
            yield

    def _clear(self) -> None:
        # The start is removed last: without it a folder that is not empty does not count as a run.
        for file in (_RECORD, PREDICTIONS):
            (self.path / file).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.logs, *(self.path / result for result in RESULTS)):
            if folder.is_dir():
                shutil.rmtree(folder)
        (self.path / _STARTED).unlink(missing_ok=True)

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; those left half-written by an interruption are removed.

        Raises:
            SubspaceError: a file has the name of a checkpoint.
        """
        found = [path for path in self.checkpoints.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
        for path in found:
            if not path.is_dir():
                raise SubspaceError(f"{path} is a file, where a checkpoint is a folder: remove it")
        for checkpoint in sorted(found, key=step_of, reverse=True):
            if _is_json(checkpoint / "trainer_state.json"):  # the last file that the Trainer writes
                return checkpoint
            shutil.rmtree(checkpoint)
        return None

    def finish(self, record: Mapping[str, Any], compared: tuple[Any, Any] | None = None) -> None:
        """Write the record, and remove the checkpoints, which are no longer needed.

        Args:
            record: the record.
            compared: predictions and references to keep beside it.
        """
        if compared is not None:
            predictions, references = (one.tolist() if hasattr(one, "tolist") else list(one) for one in compared)
            content = {"predictions": predictions, "references": references}
            write_text(self.path / PREDICTIONS, json.dumps(content, allow_nan=False))
        write_json(self.path / _RECORD, record)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
