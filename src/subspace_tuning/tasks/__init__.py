"""Tasks: what a model is tuned on and how it is scored. All modules here are imported: a new task is one new file."""

from __future__ import annotations

from ..extras import needs

needs("a task", "train")

from .base import Rows, Seen, Task, Training, Values, prefixed
from .registry import every, get, register, unregister

__all__ = ["Rows", "Seen", "Task", "Training", "Values", "every", "get", "prefixed", "register", "unregister"]
