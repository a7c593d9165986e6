"""Rows for text generation: inputs with their references."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """Inputs, and the references of each if the rows are labelled."""

    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, ...], ...] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> Texts:
        """Return the first rows."""
        return self.select(range(min(count, len(self))))

    def select(self, rows: Sequence[int]) -> Texts:
        """Return the rows of these numbers."""
        inputs = tuple(self.inputs[row] for row in rows)
        return Texts(inputs, None if self.outputs is None else tuple(self.outputs[row] for row in rows))

    def apart(self) -> Texts:
        """Return a row for each output."""
        pairs = [(one, output) for one, outputs in zip(self.inputs, self.known, strict=True) for output in outputs]
        return Texts(tuple(one for one, _ in pairs), tuple((output,) for _, output in pairs))

    def fingerprint(self) -> str:
        """Return SHA-256 over inputs and outputs."""
        return hashlib.sha256(json.dumps([self.inputs, self.outputs]).encode()).hexdigest()

    @property
    def known(self) -> tuple[tuple[str, ...], ...]:
        """The outputs of rows that have them."""
        assert self.outputs is not None
        return self.outputs
