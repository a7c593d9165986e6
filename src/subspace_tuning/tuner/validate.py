"""Types and ranges of a config's fields, checked before any of them is used.

A config is often read from a file, where a field may hold anything that JSON can say.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import SubspaceError

LARGEST_ALPHA = 1e12
"""Scales above it leave float32 within a product or two."""
LARGEST_RANK = 2**20
"""No matrix of a known model has a side as long."""
RANK_PER_SIDE, FREE_RANK = 16, 1024
"""A rank may be this many times the longer side of its matrix, or as large as ``FREE_RANK`` in a smaller one."""


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
    "layers_to_transform": (_any(_is_whole, _list_of(_is_whole)), "the index of a layer or a list of indices"),
    "layers_pattern": (_TEXTS, "a name or a list of names"),
    "modules_to_save": (_list_of(_is_text), "a list of names"),
    "layouts": (_map_of(_list_of(_anything)), "a mapping from modules to how peft keeps them"),
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
    """Raise SubspaceError if a field of a config holds what its type or range does not allow."""
    for name, (allowed, wanted) in {**_OPTIONAL, **_REQUIRED}.items():
        value = getattr(config, name, None)
        if value is None and name in _OPTIONAL:
            continue
        if not allowed(value):
            raise SubspaceError(f"{name} = {_shown(value)} is not {wanted}")
    for name in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, name), str):
            _check_regex(name, getattr(config, name))
    for name in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, name):
            _check_regex(name, key)
    for name, alpha in {"alpha": config.alpha, **config.alpha_pattern}.items():
        if not _is_number(alpha) or not 0 < alpha <= LARGEST_ALPHA:
            raise SubspaceError(f"the scale {name} = {_shown(alpha)} is not a positive number up to {LARGEST_ALPHA:g}")
    if _is_whole(config.r) and config.r > LARGEST_RANK:
        raise SubspaceError(f"the rank r = {_shown(config.r)} is out of all proportion: ranks end at {LARGEST_RANK}")
    if _is_whole(config.format) and config.format < 1:
        raise SubspaceError(f"the adapter is of format {_shown(config.format)}, which no version has")


def check_rank(module: str, rank: int, n: int, m: int) -> None:
    """Raise SubspaceError, before anything is allocated, if a rank is out of all proportion to an n x m weight."""
    limit = max(RANK_PER_SIDE * max(n, m), FREE_RANK)
    if rank > limit:
        raise SubspaceError(
            f"{module}: rank {_shown(rank)} is out of proportion to its {n} x {m} weight, in which no rank above "
            f"{min(n, m)} says more: give a smaller r"
        )


def _check_regex(name: str, text: str) -> None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise SubspaceError(f"{name}: {_shown(text)} is not a regular expression: {error}") from None


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _shown(value: object) -> str:
    """Return a value as it is written in Python, in one line of bounded length."""
    return " ".join(_REPR.repr(value).split())
