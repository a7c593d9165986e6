"""Intervals of scores: laws over all registered tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics

from subspace_tuning import tasks
from subspace_tuning.tasks import Task, intervals
from subspace_tuning.tasks.intervals import f1, interval
from subspace_tuning.tuner.loss import IGNORED

Compared = tuple[Any, Any]
CLASSES = ("a", "b", "c")
TEXTS = ("a cat sat", "the cat sat down", "no dog ran", "dogs", "a b c d")


def _noisy(rng: np.random.Generator, labels: Any, classes: int) -> Any:
    """Labels of which a third is drawn again."""
    return np.where(rng.random(labels.shape) < 1 / 3, rng.integers(classes, size=labels.shape), labels)


def _classes(count: int) -> Callable[[np.random.Generator, int], Compared]:
    def compared(rng: np.random.Generator, rows: int) -> Compared:
        labels = rng.integers(count, size=rows)
        return _noisy(rng, labels, count), labels

    return compared


def _labels(rng: np.random.Generator, rows: int) -> Compared:
    labels = rng.integers(2, size=(rows, len(CLASSES)))
    return _noisy(rng, labels, 2), labels.astype(np.float32)


def _words(rng: np.random.Generator, rows: int) -> Compared:
    labels = rng.integers(len(CLASSES), size=(rows, 6))
    predictions = _noisy(rng, labels, len(CLASSES))
    padding = np.arange(6) >= rng.integers(1, 7, size=(rows, 1))
    return predictions, np.where(padding, IGNORED, labels)


def _numbers(rng: np.random.Generator, rows: int) -> Compared:
    labels = rng.normal(1000.0, 50.0, rows)
    return labels + rng.normal(0.0, 20.0, rows), labels


def _losses(rng: np.random.Generator, rows: int) -> Compared:
    tokens = rng.integers(1, 20, rows)
    return np.stack([tokens * rng.uniform(0.5, 3, rows), tokens], axis=1), np.zeros((rows, 1))


def _texts(rng: np.random.Generator, rows: int) -> Compared:
    drawn = rng.choice(TEXTS, size=(rows, 3))
    return [str(row[rng.integers(3)]) for row in drawn], [[str(one) for one in row[:2]] for row in drawn]


COMPARED: Mapping[str, Callable[[np.random.Generator, int], Compared]] = {
    **{name: _classes(2) for name in ("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli")},
    "mnli": _classes(3),
    "stsb": _numbers,
    "classification": _classes(3),
    "image_classification": _classes(3),
    "multi_label": _labels,
    "token_classification": _words,
    "regression": _numbers,
    "question_answering": _texts,
    "generation": _texts,
    "instruction": _losses,
    "commonsense": _classes(3),
    "maths": _classes(9),
}
"""By task, what draws predictions and labels of some rows."""


def of_package() -> list[Task[Any]]:
    """Return the package's own tasks; other tests may register further ones."""
    return [task for task in tasks.every() if type(task).__module__.startswith("subspace_tuning.")]


@pytest.fixture(params=of_package(), ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Any:
    found = request.param
    return replace(found, classes=CLASSES) if hasattr(found, "classes") else found


def bounds(task: Task[Any], predictions: Any, labels: Any, groups: Any = None) -> tuple[float, float, float]:
    """Return the primary figure between the ends of its interval."""
    value = task.score(predictions, labels)[task.primary]
    rows = range(len(predictions)) if groups is None else groups
    low, high = interval(task.resampled(predictions, labels), rows, value)
    return low, value, high


def test_a_figure_of_rows_is_that_of_a_score(task: Task[Any]) -> None:
    rng = np.random.default_rng(1)
    predictions, labels = COMPARED[task.name](rng, 40)
    figure = task.resampled(predictions, labels)
    for _ in range(5):
        rows = rng.integers(40, size=40)
        parts = (intervals.of_rows(values, rows) for values in (predictions, labels))
        assert figure(rows) == pytest.approx(task.score(*parts)[task.primary], rel=1e-6)


def test_an_interval_contains_the_score_and_is_the_same_again(task: Task[Any]) -> None:
    predictions, labels = COMPARED[task.name](np.random.default_rng(2), 30)
    low, value, high = bounds(task, predictions, labels)
    assert low < value < high
    assert (low, value, high) == bounds(task, predictions, labels)


def test_an_interval_of_sixteen_times_the_rows_is_a_quarter_as_wide(task: Task[Any]) -> None:
    few, many = (np.tile(np.arange(30), times) for times in (1, 16))
    compared = COMPARED[task.name](np.random.default_rng(3), 30)
    ends = [bounds(task, *(intervals.of_rows(values, rows) for values in compared)) for rows in (few, many)]
    wide, narrow = (high - low for low, _, high in ends)
    assert 3 < wide / narrow < 6
    # Rows that belong together count once, however many there are.
    together = bounds(task, *(intervals.of_rows(values, many) for values in compared), groups=many)
    assert together == pytest.approx(ends[0], rel=1e-6)


def test_an_interval_of_equal_rows_has_no_width(task: Task[Any]) -> None:
    compared = COMPARED[task.name](np.random.default_rng(4), 1)
    low, value, high = bounds(task, *(intervals.of_rows(values, np.zeros(20, dtype=int)) for values in compared))
    assert low == pytest.approx(value) == high


def test_an_interval_covers_what_it_says() -> None:
    """Of a normal mean, it has the width of the normal interval."""
    rows = np.random.default_rng(5).normal(size=400)
    low, high = interval(lambda numbers: float(rows[numbers].mean()), range(400), float(rows.mean()))
    half = norm.ppf(0.975) * rows.std() / 20
    assert (low, high) == pytest.approx((rows.mean() - half, rows.mean() + half), abs=0.1 * half)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_figures_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    mrpc = tasks.get("mrpc").score(predictions, labels)
    assert mrpc["accuracy"] == metrics.accuracy_score(labels, predictions)
    assert mrpc["f1"] == pytest.approx(metrics.f1_score(labels, predictions, zero_division=0.0))
    assert f1(np.array(0), np.array(0)) == 0
    found = tasks.get("cola").score(predictions, labels)["matthews_correlation"]
    assert found == pytest.approx(metrics.matthews_corrcoef(labels, predictions))
