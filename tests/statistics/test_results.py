"""What may be compared, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning.errors import SubspaceError
from subspace_tuning.statistics import Claim, Results, differences, ranks, summary, verdicts

from .simulated import lines, quick, results

RNG = np.random.default_rng(0)
SCORES = {row: RNG.normal(0.8, 0.02, (4, 5)) + 0.01 * number for number, row in enumerate("abcd")}
RUNS = results(SCORES).runs
CLAIM = Claim("a is above b", "above", ("a",), ("b",))


def without(*, row: str, seed: int) -> pd.DataFrame:
    return RUNS[(RUNS["row"] != row) | (RUNS["seed"] != seed)]


def tuned(row: str, tries: int) -> pd.DataFrame:
    """The tuning runs of a row on every task."""
    rates = [one for number in range(tries) for one in lines(row, np.zeros((4, 1)), stage="tuning", rate=10.0**-number)]
    return pd.DataFrame(rates).assign(run=lambda frame: "tuning-" + frame["run"] + frame["rate"].astype(str))


TUNED = pd.concat([RUNS, *(tuned(row, 5) for row in "acd"), tuned("b", 3)])
UNMATCHED = {
    "seeds differ: a (task0, minilm) has 0, 1, 2, 3, 4, b (task0, minilm) has 0, 1, 2, 3": without(row="b", seed=4),
    "too few seeds: a (task0, minilm) has 2, at least 3 are needed": RUNS[RUNS["seed"] < 2],
    "tuning differs: a had 5 tries and b 3 (task0, minilm)": TUNED,
    "budgets differ: a trains 1,000 and b 800 (task0, minilm), more than 10 % apart": RUNS.assign(
        trained=RUNS["trained"].where(RUNS["row"] != "b", 800)
    ),
}


@pytest.mark.parametrize("line", UNMATCHED)
def test_what_is_not_matched_is_not_ranked_and_named(line: str) -> None:
    found = Results(UNMATCHED[line])
    with pytest.raises(SubspaceError) as error:
        ranks(found)
    assert str(error.value) == f"not ranked: {line}"
    [judged] = verdicts(found, [CLAIM])
    assert (judged.verdict, judged.figure) == ("undecided", line)
    frame = summary(found)
    assert set(frame["note"]) == {line}
    assert not frame["best"].any()
    frame = differences(found, "a").set_index("row").loc["b"]
    if line.startswith("budgets"):  # the frame has both numbers
        assert set(frame["trained"]) == {800}
    else:
        assert all(note.partition(":")[0] == line.partition(":")[0] for note in frame["note"])
        assert frame["p"].isna().all()


def test_what_is_matched_is_ranked() -> None:
    found = results(SCORES)
    means = pd.DataFrame({row: scores.mean(axis=1) for row, scores in SCORES.items()})
    wanted = means.rank(axis=1, ascending=False).mean().sort_index()
    pd.testing.assert_series_equal(ranks(found).mean.sort_index(), wanted)
    best = summary(found).query("best").set_index("task")["row"]
    assert dict(best) == {
        **{f"task{at}": max(SCORES, key=lambda row: SCORES[row][at].mean()) for at in range(4)},
        "average": max(SCORES, key=lambda row: SCORES[row].mean()),
    }


def test_rates_that_do_not_count_are_no_tries() -> None:
    """A grid that was extended has more runs than tries."""
    extended = TUNED.assign(counts=~((TUNED["stage"] == "tuning") & (TUNED["rate"] < 10**-2.5)))
    assert set(Results(extended).tries.values()) == {3}
    assert ranks(Results(extended)).blocks == 4


def test_only_reported_runs_that_are_done_count() -> None:
    more = pd.DataFrame(
        [*lines("a", np.ones((4, 5)), state="failed"), *lines("e", np.full((4, 2), np.nan), state="running")]
    )
    found = Results(pd.concat([RUNS, more]))
    assert found.rows == tuple("abcd")
    pd.testing.assert_frame_equal(summary(found), summary(results(SCORES)))


@settings(quick, max_examples=5)
@given(st.permutations("abcd"), st.randoms(use_true_random=False))
def test_names_and_the_order_of_runs_decide_nothing(names: list[str], random: object) -> None:
    renamed = dict(zip("abcd", names, strict=True))
    order = list(RUNS.index)
    random.shuffle(order)  # type: ignore[attr-defined]
    other = Results(RUNS.loc[order].assign(row=lambda frame: frame["row"].map(renamed)))
    for before, after in (
        (summary(results(SCORES)), summary(other)),
        (differences(results(SCORES), "a"), differences(other, renamed["a"])),
    ):
        before = before.assign(row=before["row"].map(renamed))
        keys = ["row", "task"]
        pd.testing.assert_frame_equal(
            before.sort_values(keys, ignore_index=True),
            after.sort_values(keys, ignore_index=True).assign(**({"baseline": "a"} if "baseline" in after else {})),
        )
    ranked = ranks(other).mean.sort_index()
    pd.testing.assert_series_equal(ranked, ranks(results(SCORES)).mean.rename(renamed).sort_index())


def test_missing_numbers_may_be_of_any_kind() -> None:
    """A store has nullable integers."""
    whole = RUNS.astype({"budget": "Int64", "trained": "Int64", "seed": "Int64"})
    none = RUNS.assign(budget=None, trained=None)
    for frame, trained in ((whole, 1000), (none, np.nan)):
        found = Results(frame)
        pd.testing.assert_frame_equal(summary(found), summary(results(SCORES)).assign(trained=float(trained)))
        assert ranks(found).mean.equals(ranks(results(SCORES)).mean)


def test_rows_meet_at_equal_budgets_and_those_without_one_at_all() -> None:
    runs = [*lines("full", [[0.9, 0.9, 0.8]])]
    for budget, row in ((1e3, "lora"), (2e3, "lora"), (1e3, "ssb")):
        runs += lines(row, [[0.8, 0.7, 0.8]], budget=budget)
    found = Results(pd.DataFrame(runs))
    assert [(here[1].budget, there[1].budget) for here, there in found.pairs("lora", "full")] == [
        (1e3, None),
        (2e3, None),
    ]
    assert [here[1].budget for here, _ in found.pairs("lora", "ssb")] == [1e3]
    assert list(differences(found, "full")["budget"]) == [1e3, 2e3, 1e3]


def test_a_loss_is_better_when_it_is_lower() -> None:
    losses = results({"a": [[1.0, 1.1, 0.9]], "b": [[2.0, 2.2, 1.9]], "c": [[3.0, 3.0, 3.1]]})
    found = Results(losses.runs, smaller_is_better={"accuracy"})
    frame = summary(found).set_index("row")
    assert frame["best"].to_dict() == {"a": True, "b": False, "c": False}
    assert frame.loc["a", "mean"] == pytest.approx(1.0)
    assert frame.loc["a", "low"] < 1.0 < frame.loc["a", "high"]
    assert (differences(found, "a")["difference"] < 0).all()


def test_scores_on_different_scales_are_not_averaged() -> None:
    runs = pd.DataFrame([*lines("a", [[0.8, 0.7, 0.9], [60.0, 61.0, 62.0]]), *lines("b", [[0.8] * 3, [60.0] * 3])])
    assert "average" not in set(summary(Results(runs))["task"])
    [judged] = verdicts(Results(runs), [CLAIM])
    assert judged.figure == "the tasks' scores are not on one scale: judge one task at a time"


BAD = {
    "the results lack the columns seed, score": RUNS.drop(columns=["seed", "score"]),
    "run 'a-task0-nan-0' is done and has no finite score": RUNS.assign(score=np.nan),
    "two reported runs have the same row a, task task0, model minilm, budget nan, seed 0: give the rows different "
    "names": pd.concat([RUNS, RUNS]),
}


@pytest.mark.parametrize("line", BAD)
def test_bad_frames_are_refused_in_one_line(line: str) -> None:
    with pytest.raises(SubspaceError) as error:
        Results(BAD[line])
    assert str(error.value) == line


def test_calls_about_rows_that_are_not_there_are_refused() -> None:
    found = results(SCORES)
    with pytest.raises(SubspaceError, match=r"^the results have no row 'lora'; known: a, b, c, d$"):
        differences(found, "lora")
    with pytest.raises(SubspaceError, match=r"^ranks are of at least three rows, not 2: use differences for two$"):
        ranks(found, ["a", "b"])
    few = Results(RUNS[RUNS["task"] < "task2"])
    with pytest.raises(SubspaceError, match=r"meet in 2 of the tasks, models and budgets, and at least 3 are needed$"):
        ranks(few)
