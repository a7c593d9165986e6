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
# Pairs of W's singular vectors that are chosen during training: q of the k directions.
CHOSEN_SHAPES = {"U_k": ("n", "q"), "V_k": ("m", "q")}

BASE = frozenset({"W", "b", "N"})  # the layer's own: weight, bias, and a normalisation as a map
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


OFFSET = "_offset"
"""The suffix of what a trainable factor has moved away from its start: A_offset = A - A0. It stands in plans alone."""


def is_frozen(name: str) -> bool:
    """Whether the name's tensor comes from W and is never trained."""
    from_base = name in BASE or name in SPECTRAL_SHAPES or name in CHOSEN_SHAPES
    return from_base or name == SCALE or is_mask(name) or is_start(name)


def is_legal(name: str) -> bool:
    """Whether the name can stand in a formula and as the name of a parameter."""
    return _NAME.fullmatch(name) is not None
