"""The methods that the package itself declares, whatever tests of the same process have registered besides."""

from __future__ import annotations

from pathlib import Path

from subspace_tuning import methods
from subspace_tuning.methods import Method

_FOLDER = Path(methods.__file__).parent


def packaged() -> list[Method]:
    """Return the registered methods that have a file of their own."""
    return [known for known in methods.every() if (_FOLDER / known.category / f"{known.name}.py").is_file()]
