"""What a name in a formula means. Names decide kinds, position decides shapes."""

from __future__ import annotations

import re

# W = U @ S @ V.T, thin: k = min(n, m). The suffix _r is the leading part of rank r, and rest what remains of W.
SPECTRAL_SHAPES = {
    "U": ("n", "k"),
    "S": ("k", "k"),
    "V": ("m", "k"),
    "U_r": ("n", "r"),
    "S_r": ("r", "r"),
    "V_r": ("m", "r"),
    "rest": ("n", "m"),
}

BASE = frozenset({"W", "b"})  # the layer's own tensors
SCALE = "s"  # alpha / r

_DIAGONAL = re.compile(r"S|S_r|D\d*")
_MASK = re.compile(r"M\d*")
_START = re.compile(r"[A-Za-z]\w*0")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def is_diagonal(name: str) -> bool:
    """Whether the name stands for a diagonal matrix."""
    return _DIAGONAL.fullmatch(name) is not None


def is_mask(name: str) -> bool:
    """Whether the name stands for the positions of sparse entries."""
    return _MASK.fullmatch(name) is not None


def is_start(name: str) -> bool:
    """Whether the name stands for the frozen start of the factor of the same name without the final 0."""
    return _START.fullmatch(name) is not None


def is_frozen(name: str) -> bool:
    """Whether the name's tensor comes from W and is never trained."""
    return name in BASE or name == SCALE or name in SPECTRAL_SHAPES or is_mask(name) or is_start(name)


def is_legal(name: str) -> bool:
    """Whether the name can stand in a formula and as the name of a parameter."""
    return _NAME.fullmatch(name) is not None
