"""Tasks: what a model is tuned on and how it is scored. All modules here are imported: a new task is one new file."""

from __future__ import annotations

from ..extras import needs

needs("a task", "train")

from .base import Task, Training, prefixed
from .holding_out import for_tuning
from .registry import every, get, register, unregister
from .rows import Rows, Seen, Values

__all__ = [
    "Rows",
    "Seen",
    "Task",
    "Training",
    "Values",
    "every",
    "for_tuning",
    "get",
    "prefixed",
    "register",
    "unregister",
]
