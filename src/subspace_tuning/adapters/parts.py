"""What an interrupted job leaves and the next call goes on from: a folder with a file of tensors for each part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import SubspaceError
from ..files import write_json, written


class Parts:
    """The parts of a job whose result is to be ``output``, in a folder next to it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.part")

    @contextmanager
    def open(self, job: Mapping[str, Any]) -> Iterator[None]:
        """Keep other processes out, and the parts of the same job; remove all parts once the body is done.

        Raises:
            SubspaceError: another process is at work on the same output.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=0):
                self._begin(json.loads(json.dumps(job, default=str)))
                yield
        except Timeout:
            raise SubspaceError(f"another process is at work on {self.output}") from None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, job: Mapping[str, Any]) -> None:
        """Remove the parts of another job."""
        path = self.folder / "job.json"
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != job:
            for file in self.folder.glob("*.safetensors"):
                file.unlink()
            write_json(path, job)

    def read(self, name: str) -> dict[str, Tensor] | None:
        """Return a part, None if it is missing or was not written whole."""
        try:
            return load_file(self._path(name))
        except (OSError, SafetensorError):
            return None

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a part."""
        with written(self._path(name)) as file:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
