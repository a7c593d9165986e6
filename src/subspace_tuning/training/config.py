"""Reading a run's config from YAML with `key=value` overrides, and checking its values.

Every error is one line, raised before anything is written.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from .. import tasks
from ..documented import settings
from ..errors import SubspaceError, nearest, reading
from ..methods import HOSTED
from .sections import DERIVED, FULL, HEAD, SECTIONS, AdapterSection, Keep, RunConfig

T = TypeVar("T")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run described by a YAML file.

    Args:
        path: the file; None if the overrides suffice.
        overrides: `section.key=value` strings that override the file's values; a value is parsed as YAML.

    Raises:
        SubspaceError: the file is missing or malformed, a key is unknown (the message names the nearest), a value has
            the wrong type or is out of range, or a mandatory value is absent.
    """
    with reading(_what(path)):  # odd content raises many types of errors
        return validate(read(path, overrides, RunConfig, SECTIONS))


def from_values(what: str, values: Mapping[str, Any]) -> RunConfig:
    """Return the run described by plain values, as a file has them.

    Args:
        what: the name of the values in an error.
        values: sections and keys.

    Raises:
        SubspaceError: as ``load``.
    """
    with reading(what):
        return validate(_merge(what, [values], RunConfig))


def read(path: str | Path | None, overrides: Sequence[str], structure: type[T], sections: Collection[str]) -> T:
    """Return the content of a YAML file with overrides as a dataclass, whose values are not checked.

    Args:
        path: the file; None if the overrides suffice.
        overrides: `key=value` strings, as in ``load``.
        structure: the dataclass.
        sections: the keys that may be empty, since all keys in them have defaults.

    Raises:
        SubspaceError: the file is missing or malformed, a key is unknown or absent, or a value has the wrong type.
    """
    with reading(_what(path)):
        name, parts = _parts(path, overrides)
        return _merge(name, [_without_empty_sections(part, sections) for part in parts], structure)


def _what(path: str | Path | None) -> str:
    return "the config" if path is None else f"config file {str(path)!r}"


def _parts(file: str | Path | None, overrides: Sequence[str]) -> tuple[str, list[Any]]:
    text, path = ("", "the command line") if file is None else (_text_of(Path(file)), str(file))
    for override in overrides:
        if "=" not in override:
            raise SubspaceError(f"override {override!r} is not of the form key=value")
    parts: list[Any] = []
    try:
        parts = [
            OmegaConf.create(text) if text.strip() else OmegaConf.create({}),
            OmegaConf.from_dotlist(list(overrides)),
        ]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise SubspaceError(f"{path} is not well-formed YAML: {_yaml_mistake(error)}") from error
    except AssertionError:  # OmegaConf's error for a file with a single number
        parts = [text]
    if not all(isinstance(part, DictConfig) for part in parts):
        raise SubspaceError(f"{path} does not contain keys with values")
    return path, parts


def _without_empty_sections(part: DictConfig, sections: Collection[str]) -> dict[Any, Any]:
    """Drop sections whose keys are all commented out, which YAML reads as null."""
    plain = OmegaConf.to_container(part)
    assert isinstance(plain, dict)
    return {key: value for key, value in plain.items() if value is not None or key not in sections}


def _text_of(path: Path) -> str:
    if path.suffix.lower() in _TABLES and path.is_file():
        raise SubspaceError(f"{str(path)!r} holds rows, not a config: give task.data={path} among the key=value words")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SubspaceError(f"config file {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SubspaceError(f"cannot read config file {str(path)!r}: {_one_line(error)}") from error


def _merge(path: str, parts: Sequence[Any], structure: type[T]) -> T:
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(structure), *parts))
    except ConfigKeyError as error:
        known = [str(key) for key in error.parent_node] if error.parent_node is not None else []
        key = str(error.full_key)
        key = key if len(key) <= 80 else f"{key[:77]}..."
        raise SubspaceError(f"{path}: unknown key {key!r}; {nearest(str(error.key), known)}") from error
    except MissingMandatoryValue as error:
        raise SubspaceError(f"{path}: {error.full_key!r} must be given{_meaning(str(error.full_key))}") from error
    except OmegaConfBaseException as error:
        raise SubspaceError(f"{path}: {_where(error)}{_one_line(error)}") from error
    assert isinstance(made, structure)
    return made


def _meaning(full_key: str) -> str:
    """Return what a key of a run means, to stand behind it."""
    section, _, name = full_key.rpartition(".")
    found = (f": {one.meaning}" for one in settings(SECTIONS.get(section, RunConfig)) if one.name == name)
    return next(found, "")


def _where(error: OmegaConfBaseException) -> str:
    return f"{error.full_key}: " if error.full_key else ""


def _yaml_mistake(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or _one_line(error)}{place}"


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def validate(config: RunConfig) -> RunConfig:
    """Return the same config if its values are in range and consistent, without reading files or models.

    Raises:
        SubspaceError: a value is out of range; the message names the key, the value and the range.
    """
    task, training = config.task, config.training
    for key, text in {"model": config.model, "output": config.output, "task.data": task.data}.items():
        if "\0" in text or not text.strip():
            raise SubspaceError(f"{key} is {text!r}, which is empty")
    if tasks.get(task.name).configured(task.options).loss is not None and training.label_smoothing:
        raise SubspaceError(f"training.label_smoothing has no meaning with task {task.name}, which has its own loss")
    if training.patience is not None and training.keep is not Keep.best:
        raise SubspaceError("training.patience stops after the best figure, which training.keep=best saves: give both")
    _check_adapter(config.adapter)
    if config.quantise is not None and config.adapter.method in (FULL, HEAD):
        raise SubspaceError(
            f"quantise has no meaning with method {config.adapter.method!r}: quantised weights do not train, so an "
            "adapter is needed"
        )
    for name, section in SECTIONS.items():
        for known in settings(section):
            value = getattr(getattr(config, name), known.name)
            if known.name == "learning_rate" and value == DERIVED:
                continue
            if isinstance(value, str) and known.range is not None:
                raise SubspaceError(f"{name}.{known.name} is {value!r}: it must be a number or {DERIVED}")
            if known.range is not None and value is not None and value not in known.range:
                raise SubspaceError(f"{name}.{known.name} is {reprlib.repr(value)}: it must be {known.range}")
    return config


def _check_adapter(adapter: AdapterSection) -> None:
    if adapter.peft is not None:
        if unused := sorted(_given(adapter, ("peft", "head"))):
            raise SubspaceError(f"adapter.peft is a whole config: leave adapter.{unused[0]} out")
        return
    if (adapter.method is None) == (adapter.formula is None):
        given = "neither is given; for example adapter.method=lora" if adapter.method is None else "both are given"
        raise SubspaceError(f"adapter needs a method or a formula: {given}")
    if adapter.parameters is not None and (adapter.r is not None or adapter.budget is not None):
        raise SubspaceError("adapter.parameters sizes the method: leave adapter.r and adapter.budget out")
    if adapter.method in (FULL, HEAD):
        unused = sorted(_given(adapter, ("method", "head")))
    else:
        unused = ["new_tokens"] if adapter.new_tokens and adapter.method in HOSTED else []
    if unused:
        raise SubspaceError(f"adapter.{unused[0]} has no meaning with method {adapter.method!r}: leave it out")


def _given(adapter: AdapterSection, besides: Collection[str]) -> list[str]:
    """Return the names of the fields that have a value."""
    names = [entry.name for entry in dataclasses.fields(adapter)]
    return [name for name in names if name not in besides and getattr(adapter, name) is not None]
