"""Rows for text generation: inputs with their references."""

from __future__ import annotations

from dataclasses import dataclass

from .columns import Columns, digest_of


@dataclass(frozen=True)
class Texts(Columns):
    """Inputs, and the references of each if the rows are labelled."""

    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, ...], ...] | None

    def apart(self) -> Texts:
        """Return a row for each output."""
        pairs = [(one, output) for one, outputs in zip(self.inputs, self.known, strict=True) for output in outputs]
        return Texts(tuple(one for one, _ in pairs), tuple((output,) for _, output in pairs))

    def fingerprint(self) -> str:
        """Return SHA-256 over inputs and outputs."""
        return digest_of([self.inputs, self.outputs])

    @property
    def known(self) -> tuple[tuple[str, ...], ...]:
        """The outputs of rows that have them."""
        assert self.outputs is not None
        return self.outputs
