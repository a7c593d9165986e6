"""The fields of a config's sections: their defaults, their meanings and the values that they take."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ..documented import Range, settings
from ..tuner import SubspaceConfig

COUNT = Range(positive=True, below=2**31)  # larger values are typing errors, and overflow elsewhere
POSITIVE = Range(positive=True)
FROM_ZERO = Range()
SHARE = Range(below=1)


def key(default: Any, meaning: str, within: Range | None = None) -> Any:
    """Return a field with this default, meaning and range."""
    return field(default=default, metadata={"help": meaning, "range": within})


def of_config(name: str, meaning: str | None = None) -> Any:
    """Return a field of ``SubspaceConfig``, whose default applies while it is null."""
    [known] = [one for one in settings(SubspaceConfig) if one.name == name]
    metadata = {"help": meaning or known.meaning.replace("None", "null"), "default": known.default}
    return field(default=None, metadata=metadata)
