"""Rows held out of the training rows: for validation, or for choosing a setting such as the learning rate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from sklearn.model_selection import train_test_split

from ..errors import SubspaceError
from .base import Task
from .rows import Chosen, Rows

C = TypeVar("C", bound=Chosen)
_SEED = 0  # the rows held out for tuning are the same for every method, rate and seed


def parted(
    rows: C, groups: Sequence[Hashable], share: float, seed: int, where: str, purpose: str, way_out: str
) -> tuple[C, C]:
    """Return the rows that stay, and those that are held out.

    Args:
        rows: the rows.
        groups: a key for each row; rows with equal keys stay together.
        share: the share of the groups that is held out.
        seed: draws them.
        where: the name of the data in an error.
        purpose: what the held-out rows are for, after "to train or to".
        way_out: what can be done if there are too few.

    Raises:
        SubspaceError: no row is left on one of the sides.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) * share < 1 or len(numbers) * (1 - share) < 1:
        shared = "" if len(numbers) == len(rows) else f" in {len(numbers)} groups that stay together"
        raise SubspaceError(
            f"{where} has {len(rows)} rows{shared}: none is left to train or to {purpose} if {share:g} of them are "
            f"held out; {way_out}"
        )
    drawn = train_test_split(np.arange(len(numbers)), test_size=share, random_state=seed)[1]
    held_out = set(drawn.tolist())
    sides: dict[bool, list[int]] = {False: [], True: []}
    for row, group in enumerate(groups):
        sides[numbers[group] in held_out].append(row)
    return rows.select(sides[False]), rows.select(sides[True])


def for_tuning(task: Task[Any], rows: Mapping[str, Rows], share: float) -> dict[str, Rows]:
    """Return the splits of a run that chooses a setting: a share of the training rows replaces the evaluation rows.

    Args:
        task: the task.
        rows: its rows, by split.
        share: the share of the training rows that is held out.

    Raises:
        SubspaceError: there are too few training rows, or the task's rows cannot be selected by number.
    """
    train: Any = rows["train"]
    if not hasattr(train, "select"):
        raise SubspaceError(f"the rows of task {task.name} have no `select`, which task.tuning_split needs: add it")
    stay, held_out = parted(
        train, task.groups(train), share, _SEED, "the training data", "score with", "lower task.tuning_split"
    )
    return {"train": stay, **dict.fromkeys((split for _, split in task.evaluation), held_out)}
