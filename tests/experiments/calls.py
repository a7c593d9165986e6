"""Calls of the command within the tests' process."""

from __future__ import annotations

import pytest

from subspace_cli import main


def printed_by(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Return what a command that goes well prints."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    output, errors = capfd.readouterr()
    assert ended.value.code == 0, errors
    return output


def refusal_of(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends with."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    output, errors = capfd.readouterr()
    assert ended.value.code == 2 and not output
    assert errors.startswith("subspace: ") and errors.count("\n") == 1, errors
    return errors
