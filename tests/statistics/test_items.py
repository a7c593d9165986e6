"""Tests that pair rows item by item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from subspace_tuning.errors import SubspaceError
from subspace_tuning.statistics import Results, items_interval, mcnemar

from .simulated import at_most, quick, results, within

Right = dict[str, NDArray[np.bool_]]
"""Which items each row has right, seeds x items."""


def scorer(task: str) -> Any:
    return lambda predictions, references: lambda items: float((predictions == references)[items].mean())


def answered(right: Right) -> Results:
    """Return the results of rows whose answers are these."""
    found = results({row: [of_row.mean(axis=1)] for row, of_row in right.items()})
    outcomes = {
        line["run"]: (np.ones(right[line["row"]].shape[1]), right[line["row"]][line["seed"]].astype(float))
        for line in found.runs.to_dict("records")
    }
    return Results(found.runs, lambda run: tuple(part.astype(int) for part in outcomes[run]), scorer)  # type: ignore[arg-type, return-value]


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_mcnemar_is_the_exact_test_of_the_discordant_items(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    right = {row: rng.random((3, items)) < 0.7 for row in "ab"}
    frame = mcnemar(answered(right), "a", "b", "task0", "minilm")
    for line in frame.to_dict("records"):
        ours, theirs = right["a"][line["seed"]], right["b"][line["seed"]]
        alone, discordant = int((ours & ~theirs).sum()), int((ours ^ theirs).sum())
        assert line["row_alone"] == alone
        wanted = stats.binomtest(alone, discordant).pvalue if discordant else 1.0
        assert line["p"] == pytest.approx(min(1.0, wanted))
    assert (frame["p_holm"] >= frame["p"]).all()


def simulated(rng: np.random.Generator, of_seed: float, of_item: float, items: int = 150, seeds: int = 5) -> Right:
    """Two equal rows: an item is right by its own difficulty for each row, shared by the seeds, and by the seed."""
    found = {}
    shared = rng.normal(0, 1, items)
    for row in "ab":
        ability = rng.normal(0, of_seed, (seeds, 1))
        difficulty = shared + rng.normal(0, of_item, items)
        found[row] = rng.random((seeds, items)) < 1 / (1 + np.exp(-1 - ability - difficulty))
    return found


@pytest.mark.parametrize(("of_seed", "of_item"), [(0.0, 5.0), (0.5, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("trials", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_interval_over_items_and_seeds_holds_the_difference(trials: int, of_seed: float, of_item: float) -> None:
    """The difference of two equal rows over all seeds and items is 0. The t-test over seeds misses the items' share."""
    rng, missed, narrow = np.random.default_rng(0), 0, 0
    for _ in range(trials):
        found = answered(simulated(rng, of_seed, of_item))
        interval = items_interval(found, "a", "b", "task0", "minilm", samples=100)[None]
        missed += not interval.low < 0 < interval.high
        scores = found.reported.pivot(index="seed", columns="row", values="score")
        narrow += bool(stats.ttest_rel(scores["a"], scores["b"]).pvalue < 0.05)
    assert at_most(missed, trials, 0.06)
    if of_seed == 0:
        assert not within(narrow, trials, 0.05)


def test_runs_without_seeds_effect_have_the_items_bootstrap() -> None:
    right = np.random.default_rng(0).random((1, 200)) < 0.7
    other = np.random.default_rng(1).random((1, 200)) < 0.7
    found = answered({"a": np.repeat(right, 3, axis=0), "b": np.repeat(other, 3, axis=0)})
    interval = items_interval(found, "a", "b", "task0", "minilm")[None]
    error = (right.astype(float) - other).std(ddof=1) / 200**0.5
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert interval.mean == pytest.approx(right.mean() - other.mean())


def test_items_that_are_all_alike_leave_the_t_interval_over_seeds() -> None:
    scores = dict(zip("ab", np.random.default_rng(0).normal(0.8, 0.02, (2, 5)), strict=True))
    found = results({row: [of_row] for row, of_row in scores.items()})
    of_run = found.runs.set_index("run")["score"]
    mean = Results(
        found.runs,
        lambda run: (np.zeros(9), np.full(9, of_run[run])),
        lambda task: lambda predictions, references: lambda items: float(predictions[items].mean()),
    )
    interval = items_interval(mean, "a", "b", "task0", "minilm", samples=10)[None]
    known = stats.ttest_rel(scores["a"], scores["b"]).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((known.low, known.high))


def test_what_cannot_be_paired_is_refused() -> None:
    right = {row: np.ones((3, 8), dtype=bool) for row in "ab"}
    found = answered(right)
    cases = {
        "were not both run on 'cola' with 'minilm'": (found, "cola"),
        "were scored on different test items": (
            Results(found.runs, lambda run: (np.full(8, run.startswith("a")), np.ones(8, dtype=int)), scorer),
            "task0",
        ),
        "does not predict one class for each item, as McNemar's test needs: use items_interval": (
            Results(found.runs, lambda run: (np.ones(8), np.ones(8)), scorer),
            "task0",
        ),
        "the predictions of run 'a-task0-nan-0' are not at hand": (Results(found.runs), "task0"),
    }
    for line, (bad, task) in cases.items():
        with pytest.raises(SubspaceError, match=line):
            mcnemar(bad, "a", "b", task, "minilm")
    with pytest.raises(SubspaceError, match="the score of task 'task0' is not at hand as a function of items"):
        items_interval(Results(found.runs, found.outcomes), "a", "b", "task0", "minilm")
