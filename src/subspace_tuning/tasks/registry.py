"""The tasks by name. Those of this package are its modules; others are registered when their module is imported."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from ..errors import SubspaceError, nearest
from .base import Task

_TASKS: dict[str, Task[Any]] = {}


def register(task: Task[Any]) -> None:
    """Register a task. Raises SubspaceError if another task has its name."""
    if _plain(task.name) in _TASKS:
        raise SubspaceError(f"there is already a task {task.name!r}: choose another name")
    _TASKS[_plain(task.name)] = task


def unregister(name: str) -> None:
    """Remove a task. Raises SubspaceError if no task has the name."""
    del _TASKS[_plain(get(name).name)]


def get(name: str) -> Task[Any]:
    """Return a task by name, ignoring case and hyphens ("STS-B" is "stsb").

    Raises:
        SubspaceError: no task has that name; the message gives the nearest names.
    """
    _read_modules()
    plain = _plain(name)
    if plain not in _TASKS:
        raise SubspaceError(f"unknown task {name!r}: {nearest(name, (task.name for task in _TASKS.values()))}")
    return _TASKS[plain]


def every() -> list[Task[Any]]:
    """Return all registered tasks."""
    _read_modules()
    return list(_TASKS.values())


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@cache
def _read_modules() -> None:
    """Import every module beside this one, only when a task is needed, since metrics take a second to import."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")
