"""Checks of a config before use: the types and ranges of its fields, and which options a method takes.

A config is often read from a file, where a field may hold any JSON value.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..documented import Setting
from ..errors import SubspaceError, nearest
from ..methods.patterns import PENALTIES, REDUCTIONS

if TYPE_CHECKING:
    from .config import SubspaceConfig

LARGEST_ALPHA = 1e12
"""Larger scales overflow float32 within a product or two."""
LARGEST_RANK = 2**20
"""No matrix of a known model has a side this long."""
RANK_PER_SIDE, FREE_RANK = 16, 1024
"""A rank may be this many times the longer side of its matrix, or ``FREE_RANK`` if that is larger."""


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _anything(value: object) -> bool:
    return True


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _list_of(allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, (list, tuple, set)) and all(allowed(entry) for entry in value)


def _map_of(allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(key, str) and allowed(entry) for key, entry in value.items())
    )


def _any(*allowed: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: any(one(value) for one in allowed)


_TEXTS = _any(_is_text, _list_of(_is_text))
_OPTIONAL: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "method": (_is_text, "the name of a method"),
    "formula": (_is_text, "the text of a formula"),
    "starts": (_map_of(_is_text), "a mapping from factors to the names of starts"),
    "pattern": (_TEXTS, "the name of a pattern or a list of names"),
    "pattern_weight": (_is_number, "a number"),
    "budget": (_is_number, "a number"),
    "schedule": (_map_of(_is_number), "a mapping from options to numbers"),
    "entries": (_map_of(_list_of(_is_whole)), "a mapping from modules to their entries, n and m"),
    "positions": (_map_of(_is_tensor), "a mapping from modules to tensors"),
    "target_modules": (_TEXTS, "a name, a regular expression or a list of names"),
    "exclude_modules": (_TEXTS, "a name, a regular expression or a list of names"),
    "target_parameters": (_list_of(_is_text), "a list of names"),
    "transposed_parameters": (_list_of(_is_text), "a list of names"),
    "parts": (_map_of(_list_of(_is_text)), "a mapping from modules to lists of parts"),
    "layers_to_transform": (_any(_is_whole, _list_of(_is_whole)), "the index of a layer or a list of indices"),
    "layers_pattern": (_TEXTS, "a name or a list of names"),
    "modules_to_save": (_list_of(_is_text), "a list of names"),
    "layouts": (_map_of(_list_of(_anything)), "a mapping from modules to their layouts in peft"),
    "base_model_name_or_path": (_is_text, "the name of a model"),
}
_REQUIRED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "rank_stabilised": (_is_switch, "true or false"),
    "dropout": (_is_number, "a number"),
    "nonlinearity": (_is_text, "the name of a function"),
    "gate_weight": (_is_number, "a number"),
    "calibrated": (_is_switch, "true or false"),
    "rank_pattern": (_map_of(_anything), "a mapping from module names to ranks"),
    "alpha_pattern": (_map_of(_anything), "a mapping from module names to scales"),
    "init_weights": (_is_switch, "true or false"),
    "save_constants": (_is_switch, "true or false"),
}


def check_types(config: Any) -> None:
    """Raise SubspaceError if a field of a config has a wrong type or is out of range."""
    for name, (allowed, wanted) in {**_OPTIONAL, **_REQUIRED}.items():
        value = getattr(config, name, None)
        if value is None and name in _OPTIONAL:
            continue
        if not allowed(value):
            raise SubspaceError(f"{name} = {_shown(value)} is not {wanted}")
    for name in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, name), str):
            _check_regex(name, getattr(config, name))
    for name in ("rank_pattern", "alpha_pattern", "parts"):
        for key in getattr(config, name) or ():
            _check_regex(name, key)
    for name, alpha in {"alpha": config.alpha, **config.alpha_pattern}.items():
        if not _is_number(alpha) or not 0 < alpha <= LARGEST_ALPHA:
            raise SubspaceError(f"the scale {name} = {_shown(alpha)} is not a positive number up to {LARGEST_ALPHA:g}")
    if _is_whole(config.r) and config.r > LARGEST_RANK:
        raise SubspaceError(f"the rank r = {_shown(config.r)} is too large: the largest rank is {LARGEST_RANK}")
    if _is_whole(config.format) and config.format < 1:
        raise SubspaceError(f"the adapter is of format {_shown(config.format)}, which no version has")


def check_values(config: SubspaceConfig, known: Iterable[Setting], newest: int) -> None:
    """Raise SubspaceError if a field has a value that is invalid for every method.

    Args:
        config: the config.
        known: its fields, with their ranges.
        newest: the format saved by this version.
    """
    if not isinstance(config.format, int) or config.format > newest:
        raise SubspaceError(
            f"the adapter is of format {config.format}, saved by a newer version of subspace-tuning; this version "
            f"reads up to {newest}: upgrade it"
        )
    for name, rank in {"r": config.r, **config.rank_pattern}.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise SubspaceError(f"the rank {name} = {rank!r} is not a positive whole number")
    for one in known:
        value = getattr(config, one.name)
        if one.range is not None and value is not None and value not in one.range:
            raise SubspaceError(f"{one.name} = {value!r}: it must be {one.range}")
    if config.pattern_reduction not in REDUCTIONS:
        nearby = nearest(str(config.pattern_reduction), REDUCTIONS)
        raise SubspaceError(f"unknown pattern_reduction {config.pattern_reduction!r}; {nearby}")
    _check_budget(config.budget)
    _check_layers(config)


def check_use(config: SubspaceConfig) -> None:
    """Raise SubspaceError if the method does not start at W, or if an option does not apply to it."""
    method = config.resolved
    if config.init_weights:
        for rank in dict.fromkeys((config.r, *config.rank_pattern.values())):
            method.check_start(rank)
    if config.pattern_weight is not None and not set(config.patterns) & set(PENALTIES):
        raise SubspaceError("pattern_weight needs the pattern orthogonal or diagonal")
    if config.schedule is not None and method.schedule is None:
        raise SubspaceError(f"method {method.name!r} has no schedule: leave the option `schedule` out")
    if config.budget is not None and method.chooser is None:
        raise SubspaceError(f"method {method.name!r} chooses nothing within a budget: leave the option out")
    if method.formula.masked and method.chooser is None:
        raise SubspaceError(f"method {method.name!r}: the formula has a mask, and its `selection` is not given")
    _ = config.schedule_options


def _check_layers(config: SubspaceConfig) -> None:
    for option in ("layers_to_transform", "layers_pattern"):
        if getattr(config, option) is not None and isinstance(config.target_modules, str):
            raise SubspaceError(
                f"`{option}` cannot be used when `target_modules` is a str. List the modules, or name the layers "
                f"in the regex {config.target_modules!r}"
            )
    if config.layers_pattern and config.layers_to_transform is None:
        raise SubspaceError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")


def _check_budget(budget: float | None) -> None:
    if budget is None:
        return
    whole = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
    share = isinstance(budget, float) and (0.0 < budget <= 1.0)
    if not whole and not share:
        raise SubspaceError(f"budget = {budget!r} is neither a share between 0.0 and 1.0 nor a positive whole number")


def check_rank(module: str, rank: int, n: int, m: int) -> None:
    """Raise SubspaceError, before anything is allocated, if a rank is far too large for an n x m weight."""
    limit = max(RANK_PER_SIDE * max(n, m), FREE_RANK)
    if rank > limit:
        raise SubspaceError(
            f"{module}: rank {_shown(rank)} is far too large for its {n} x {m} weight, for which ranks above "
            f"{min(n, m)} add nothing: give a smaller r"
        )


def _check_regex(name: str, text: str) -> None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise SubspaceError(f"{name}: {_shown(text)} is not a regular expression: {error}") from None


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _shown(value: object) -> str:
    """Return a value's Python representation, in one line of bounded length."""
    return " ".join(_REPR.repr(value).split())
