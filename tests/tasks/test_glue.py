"""Metrics, baselines and the facts about each task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks import glue
from subspace_tuning.tasks.data.tables import Table

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "glue"


def test_there_are_nine_tasks_whose_primary_figure_exists() -> None:
    assert len(glue.TASKS) == 9
    for task in glue.TASKS.values():
        predictions = np.array([0.0, 1.0, 1.0]) if task.regression else np.array([0, 1, 1])
        assert task.primary in task.score(predictions, predictions)
        assert task.score(predictions, predictions)[task.primary] == pytest.approx(1.0)


@pytest.mark.parametrize(("spelling", "name"), [("CoLA", "cola"), ("STS-B", "stsb"), ("sst_2", "sst2")])
def test_a_task_is_found_by_the_spelling_of_papers(spelling: str, name: str) -> None:
    assert tasks.get(spelling).name == name


def test_an_unknown_task_gets_the_nearest_names() -> None:
    with pytest.raises(SubspaceError, match="unknown task 'mrcp': did you mean mrpc"):
        tasks.get("mrcp")


def test_metrics_have_the_values_of_their_definitions() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    predictions = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    mrpc = tasks.get("mrpc").score(predictions, labels)
    assert mrpc["accuracy"] == pytest.approx(0.7)
    assert mrpc["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert mrpc["mean"] == pytest.approx((0.7 + 6 / 9) / 2)
    cola = tasks.get("cola").score(predictions, labels)
    assert cola["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_correlations_are_those_of_pearson_and_spearman() -> None:
    labels, predictions = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0, 9.0])
    figures = tasks.get("stsb").score(predictions, labels)
    assert figures["pearson"] == pytest.approx(np.corrcoef(labels, predictions)[0, 1])
    assert figures["spearman"] == pytest.approx(1.0)
    assert figures["mean"] == pytest.approx((figures["pearson"] + 1) / 2)


@given(st.integers(2, 30), st.floats(-5, 5, allow_nan=False), st.integers(0, 2**32 - 1))
def test_a_constant_has_no_correlation(rows: int, constant: float, seed: int) -> None:
    labels = np.random.default_rng(seed).uniform(0, 5, rows)
    figures = tasks.get("stsb").score(np.full(rows, constant), labels)
    assert figures == {"pearson": 0.0, "spearman": 0.0, "mean": 0.0}


def _rows(*labels: float) -> Table:
    return Table((("",) * len(labels),), np.array(labels))


def test_the_baseline_is_the_training_rows_majority() -> None:
    assert tasks.get("rte").baseline(_rows(1, 1, 0), _rows(0, 0, 0, 1)) == {"accuracy": 0.25}
    assert tasks.get("stsb").baseline(_rows(1.0, 4.0), _rows(1.0, 2.0))["mean"] == 0.0
    assert tasks.get("cola").baseline(_rows(1, 1, 0), _rows(0, 1))["matthews_correlation"] == 0.0


def test_predictions_come_from_logits_of_any_batch_shape() -> None:
    assert tasks.get("rte").predict(np.array([[0.1, 0.3], [2.0, -1.0]])).tolist() == [1, 0]
    assert tasks.get("stsb").predict(np.array([[1.5], [2.5]])).tolist() == [1.5, 2.5]
    assert tasks.get("stsb").predict(np.array([1.5])).tolist() == [1.5]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cola", (8551, 1043)),
        ("sst2", (67349, 872)),
        ("mrpc", (3668, 408)),
        ("stsb", (5749, 1500)),
        ("rte", (2490, 277)),
    ],
)
def test_the_published_data_are_read_whole(name: str, sizes: tuple[int, int]) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs GLUE's {name} as JSON lines in {folder}")
    splits = tasks.get(name).load(str(folder))
    assert (len(splits["train"]), len(splits["validation"])) == sizes
    lines = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for column, texts in zip(glue.TASKS[name].columns, splits["validation"].texts, strict=True):
        assert [row[column] for row in rows] == list(texts)
    assert [row["label"] for row in rows] == splits["validation"].labels.tolist()
