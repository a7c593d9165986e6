"""Frames, configs and loss curves in columns, with each value that repeats written once."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=Hashable)

NUMBERS = set("trained head rate seed score seconds memory difference low high count failed entry".split())
"""The columns that hold numbers, in all frames of a page."""
_POINTS, _FEWEST, _MOST = 200_000, 25, 100  # of all loss curves together, and of one


def frame_columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a frame: those of ``NUMBERS`` as numbers or null, others as texts and their positions."""
    found: dict[str, Any] = {}
    for name in map(str, frame.columns):
        if name in NUMBERS:
            found[name] = [number(value) for value in frame[name].to_numpy(float, na_value=np.nan)]
        else:
            codes, values = frame[name].factorize()
            found[name] = {"of": [str(value) for value in values], "at": codes.tolist()}
    return found


def config_columns(configs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each key its path, the values that occur, and the position of each config's value among them.

    The position is -1 if a config has no such key.
    """
    found: dict[tuple[str, ...], list[str | None]] = {}
    length = 0
    for config in configs:
        for path, value in _leaves(config):
            column = found.setdefault(path, [])
            column.extend([None] * (length - len(column)))
            column.append(_text(value))
        length += 1
    columns = []
    for path, texts in found.items():
        values, positions = _positions([*texts, *[None] * (length - len(texts))])
        columns.append({"path": path, "of": [json.loads(value) for value in values], "at": positions})
    return columns


def curve_columns(curves: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Return the losses of each curve and the position of its steps; longer curves are averaged over spans of steps."""
    most = min(_MOST, max(_FEWEST, _POINTS // max(1, len(curves))))
    thinned = [_thinned(curve, most) for curve in curves]
    steps, positions = _positions([steps for steps, _ in thinned])
    return {"steps": steps, "at": positions, "losses": [losses for _, losses in thinned]}


def number(value: float, digits: int = 6) -> float | int | None:
    """Return a number as JSON has it: null unless it is finite, whole ones whole, others to some significant digits."""
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.{digits}g}")


def _leaves(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:  # JSON has neither NaN nor infinity
        return json.dumps(str(value))


def _positions(values: Iterable[T | None]) -> tuple[list[T], list[int]]:
    """Return the values that occur, and the position of each among them; -1 is that of None."""
    known: dict[T, int] = {}
    positions = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return list(known), positions


def _thinned(curve: Sequence[tuple[float, float]], most: int) -> tuple[tuple[float | int | None, ...], list[Any]]:
    points = np.asarray(curve, dtype=float).reshape(-1, 2)
    if len(points) > most:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, most)])
        points[:, 0] = points[:, 0].round()
    return tuple(number(step) for step in points[:, 0]), [number(loss, 4) for loss in points[:, 1]]
