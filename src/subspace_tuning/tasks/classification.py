"""One class per row, from own files.

Examples:
    >>> import numpy as np
    >>> task = Classification(classes=("bad", "good"))
    >>> task.score(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))["accuracy"]
    0.75
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .data.tables import Table
from .one_class import OneClassTask
from .own_texts import OwnTextTask
from .registry import register
from .rows import Seen
from .texts import by_class


@dataclass(frozen=True)
class Classification(OneClassTask[Table], OwnTextTask):
    """One of several classes per row."""

    name = "classification"

    def answers(self, seen: Seen[Table]) -> list[dict[str, Any]]:
        """Return each row's texts with its class and the probabilities of all."""
        return self.beside_texts(seen.rows, by_class(seen.outputs, self.names))


register(Classification())
