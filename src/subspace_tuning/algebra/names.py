"""The meaning of names in a formula. Names decide kinds, position decides shapes."""

from __future__ import annotations

import re
from functools import lru_cache

from torch import nn

# W = U @ S @ V.T, thin: k = min(n, m). The suffix _r marks the leading part of rank r; rest is the remainder of W.
SPECTRAL_SHAPES = {
    "U": ("n", "k"),
    "S": ("k", "k"),
    "V": ("m", "k"),
    "U_r": ("n", "r"),
    "S_r": ("r", "r"),
    "V_r": ("m", "r"),
    "rest": ("n", "m"),
}
# Pairs of W's singular vectors that are chosen during training: q of the k directions.
CHOSEN_SHAPES = {"U_k": ("n", "q"), "V_k": ("m", "q")}

BASE = frozenset({"W", "b", "N"})  # the layer's own: weight, bias, and a normalisation as a map
SCALE = "s"  # alpha / r

_DIAGONAL = re.compile(r"S|S_r|D\d*")
_MASK = re.compile(r"M\d*")
_NAME = re.compile(r"[A-Za-z](\w*[A-Za-z0-9])?", re.ASCII)
_LONGEST = 64
_KEPT_AS = frozenset(dir(nn.ParameterDict()))  # attributes of the module that holds a layer's factors


def is_diagonal(name: str) -> bool:
    """Return whether the name is that of a diagonal matrix."""
    return _DIAGONAL.fullmatch(started(name) or name) is not None


def is_mask(name: str) -> bool:
    """Return whether the name is that of a mask, the positions of sparse entries."""
    return _MASK.fullmatch(name) is not None


def start_of(name: str) -> str:
    """Return the name of a factor's frozen start: ``A0`` for A, and ``A1_0`` for A1, since A10 is the tenth factor."""
    return f"{name}_0" if name[-1].isdigit() else f"{name}0"


@lru_cache(maxsize=4096)
def started(name: str) -> str | None:
    """Return the factor whose frozen start has this name; None for a name of another kind."""
    stems = (name.removesuffix("_0"), name.removesuffix("0"))
    return next((stem for stem in stems if stem and stem != name and start_of(stem) == name), None)


def is_start(name: str) -> bool:
    """Return whether the name is that of a factor's frozen start."""
    return started(name) is not None


OFFSET = "_offset"
"""The suffix of a trainable factor's offset from its start: A_offset = A - A0. It occurs only in plans."""


def is_frozen(name: str) -> bool:
    """Return whether the name's tensor comes from W and is never trained."""
    from_base = name in BASE or name in SPECTRAL_SHAPES or name in CHOSEN_SHAPES
    return from_base or name == SCALE or is_mask(name) or is_start(name)


def problem(name: str) -> str | None:
    """Return why a name is not allowed in a formula, or None if it is: every factor also names a parameter."""
    if not _NAME.fullmatch(name):
        return "a name consists of A to Z, a to z, digits and _, starts with a letter and does not end in _"
    if len(name) > _LONGEST:
        return f"a name has at most {_LONGEST} letters, digits and _"
    if name in ("nan", "inf"):
        return f"{name} is not a finite number"
    if name in _KEPT_AS:
        return f"{name} is an attribute of torch.nn.ParameterDict, which holds the factors; choose another name"
    if name.endswith(OFFSET):
        return f"names that end in {OFFSET} are reserved for the offsets of factors; choose another name"
    return None
