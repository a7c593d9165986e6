"""A template config for `subspace train` with every key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from .. import tasks
from ..documented import Setting, settings
from ..errors import SubspaceError
from .sections import SECTIONS, RunConfig

_GIVEN = {"model": "minilm", "output": "runs/mine", "task.name": "mrpc", "adapter.method": "ssb"}


def template(given: Mapping[str, str] = _GIVEN) -> str:
    """Return a YAML file with every key: those in ``given`` with their values, the others commented out."""
    lines = [
        "# Every key of a run; a commented-out value is the default. `subspace train FILE` runs it.",
        *_lines(settings(RunConfig), given),
    ]
    for name, section in SECTIONS.items():
        lines += [f"{name}:", *_lines(settings(section), given, f"{name}.")]
    return "\n".join(lines) + "\n"


def preset(task: str) -> str:
    """Return the config of a run with a paper's values for a task. Raises SubspaceError if there are none."""
    found = tasks.get(task)
    if not found.preset:
        known = ", ".join(one.name for one in tasks.every() if one.preset)
        raise SubspaceError(f"no paper gives values for task {found.name}: there are values for {known}")
    values = {f"training.{key}": as_yaml(value) for key, value in found.preset.items()}
    return template({**_GIVEN, "output": f"runs/{found.name}", "task.name": found.name, **values})


def as_yaml(value: Any) -> str:
    """Return a default as written in a file."""
    plain = value.value if isinstance(value, Enum) else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def _lines(found: Iterable[Setting], given: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    for one in found:
        key = f"{prefix}{one.name}"
        value = given[key] if key in given else as_yaml(one.default)
        behind = "" if key in given else "# "
        kind = one.type.removesuffix(" | None")
        yield f"{'  ' * bool(prefix)}{behind}{one.name}: {value}  # {kind}: {one.meaning}"
