"""Comparisons: how rates are chosen, how runs are placed, and what a store survives. No run here is trained."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, select

from subspace_tuning.comparison import database as databases
from subspace_tuning.comparison import leases, schema, work
from subspace_tuning.comparison.database import Database
from subspace_tuning.comparison.grid import REPORT, TUNING
from subspace_tuning.comparison.leases import Shard
from subspace_tuning.comparison.owners import new_owner
from subspace_tuning.comparison.planning import place
from subspace_tuning.comparison.progress import failures, progress
from subspace_tuning.comparison.rates import Decision, counting, decide, first_steps
from subspace_tuning.comparison.store import Store
from subspace_tuning.comparison.taking import take_runs
from subspace_tuning.comparison.work import Working
from subspace_tuning.errors import SubspaceError

from .comparing import cells_of, comparison, planned, result_of, score_of, without_training

FORK = multiprocessing.get_context("fork")
TIMELESS = ["seconds", "memory"]

# How a rate is chosen


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[dict[int, float | None], int, int]:
    """A score for every step that could be tried, the number of tries, and of extensions."""
    tries, extensions = draw(st.integers(2, 6)), draw(st.integers(0, 3))
    scores = st.one_of(st.none(), st.integers(-3, 3).map(float))
    return {step: draw(scores) for step in range(-20, 21)}, tries, extensions


def tuned(scores: Mapping[int, float | None], tries: int, extensions: int) -> tuple[Decision, list[int]]:
    """The choice at the end, and the steps tried until then."""
    steps = first_steps(tries)
    while (made := decide({s: scores[s] for s in steps}, tries=tries, extensions=extensions)).added is not None:
        steps.append(made.added)
    return made, steps


@given(sweeps())
def test_the_best_of_equally_many_rates_is_chosen(sweep: tuple[dict[int, float | None], int, int]) -> None:
    scores, tries, extensions = sweep
    made, steps = tuned(*sweep)
    assert sorted(steps) == list(range(min(steps), max(steps) + 1)) and len(steps) <= tries + extensions
    counted = counting(steps, tries)
    assert len(counted) == tries
    known = {step: scores[step] for step in counted if scores[step] is not None}
    if made.best is None:
        assert not known
        return
    assert made.best in known and known[made.best] == max(known.values())
    # At the edge of all only if no extension was left.
    assert len(steps) == tries + extensions or made.best not in (min(steps), max(steps)) or tries == 2


@given(sweeps(), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_scores_matters(
    sweep: tuple[dict[int, float | None], int, int], factor: float, shift: float
) -> None:
    scores, tries, extensions = sweep
    moved = {step: None if score is None else factor * score + shift for step, score in scores.items()}
    assert tuned(moved, tries, extensions) == tuned(*sweep)


# What is placed


@pytest.fixture(autouse=True)
def unsynchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without waiting for the disk, which only a power failure would show."""
    monkeypatch.setattr(databases, "_SYNCHRONOUS", "OFF")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_train", without_training())


def finished_frame(database: Database) -> pd.DataFrame:
    return Store(database.path).frame().drop(columns=TIMELESS)


@settings(max_examples=2, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_places_do_not_depend_on_the_order_of_the_runs(
    order: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cells = cells_of("a", "fixed", budgets=(4, 8))
    straight, shuffled = (planned(tmp_path_factory.mktemp("stores") / "s", cells) for _ in range(2))
    for database, shuffle in ((straight, False), (shuffled, True)):
        held: list[leases.Lease] = []
        while True:
            lease = leases.claim(database, new_owner())
            held += [lease] if lease is not None else []
            if lease is None and not held:
                break
            if lease is None or not shuffle or order.random() < 0.5:
                chosen = held.pop(order.randrange(len(held)) if shuffle else 0)
                assert leases.finish(database, chosen, result_of(chosen))
    frames = [
        finished_frame(one).sort_values(["row", "budget", "stage", "rate", "seed"]) for one in (straight, shuffled)
    ]
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames))
    # Planned anew from the scores, the places are the same.
    before = finished_frame(shuffled)
    place(shuffled, comparison(shuffled.path), cells)
    again = finished_frame(shuffled)
    assert sorted(before["run"]) == sorted(again["run"]) and set(again["state"]) == {"done"}


@pytest.mark.usefixtures("untrained")
def test_a_comparison_is_tuned_and_reported(tmp_path: Path) -> None:
    database = planned(tmp_path / "s", cells_of("a", "fixed", budgets=(4, 8)))
    work.work(database)
    store = Store(database.path)
    runs, chosen = store.frame(), store.tuned()
    # The best rate is two steps above the middle: each grid is extended twice, and its lower end no longer counts.
    assert set(chosen["rate"]) == {0.04} and set(chosen["extended"]) == {2} and set(chosen["tries"]) == {3}
    assert not chosen["edge"].any()
    assert set(runs.loc[(runs["stage"] == TUNING) & runs["counts"], "rate"]) == {0.02, 0.04, 0.08}
    assert set(runs.loc[runs["stage"] == REPORT, "rate"]) == {0.04}
    seeds = {stage: set(part["seed"]) for stage, part in runs.groupby("stage")}
    assert seeds == {TUNING: {7, 8}, REPORT: {1, 2}}
    # "fixed" has the same runs at both budgets, made once.
    fixed = runs[runs["row"] == "fixed"]
    assert fixed["run"].value_counts().eq(2).all()
    assert len(set(runs["run"])) == 3 * (5 * 2 + 2)
    for run, part in runs.groupby("run"):
        config = store.config(str(run))
        assert part["score"].eq(score_of(config)).all()
        assert config["task"]["tuning_split"] == (0.25 if set(part["stage"]) == {TUNING} else None)
        references, predictions = store.outcomes(str(run))
        assert references.tolist() == [0.0, 1.0] and predictions[0] == part["score"].iloc[0]
        assert store.curve(str(run)) == [(1, part["score"].iloc[0])]


@pytest.mark.usefixtures("untrained")
def test_runs_of_another_config_stay(tmp_path: Path) -> None:
    store = tmp_path / "s"
    work.work(planned(store, cells_of("a")))
    first = Store(store).frame()
    database = planned(store, cells_of("a", "bb"), seeds=[1, 2, 3])
    assert progress(database).done == len(first)
    work.work(database)
    assert len(Store(store).frame()) == 2 * (len(first) + 1)
    place(database, comparison(store), cells_of("a"))
    pd.testing.assert_frame_equal(Store(store).frame(), first)


def test_a_running_comparison_is_not_replaced(tmp_path: Path) -> None:
    database = planned(tmp_path / "s", cells_of("a"))
    lease = leases.claim(database, new_owner())
    assert lease is not None
    place(database, comparison(tmp_path / "s"), cells_of("a"))  # the same one may join
    with pytest.raises(SubspaceError, match="another comparison is running"):
        place(database, comparison(tmp_path / "s"), cells_of("b"))
    leases.release(database, lease)
    place(database, comparison(tmp_path / "s"), cells_of("b"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("count", [3])
def test_shards_make_the_whole(count: int, tmp_path: Path) -> None:
    cells = cells_of("a", "bb", budgets=(4, 8))
    whole = planned(tmp_path / "whole", cells)
    work.work(whole)
    database = planned(tmp_path / "s", cells)
    for index in range(count):
        work.work(database, Working(Shard(index, count)))
        assert progress(database, Shard(index, count)).left == 0
    pd.testing.assert_frame_equal(
        *(
            finished_frame(one).sort_values(["row", "budget", "stage", "rate", "seed"], ignore_index=True)
            for one in (whole, database)
        )
    )


@pytest.mark.usefixtures("untrained")
def test_shards_in_stores_of_their_own_are_put_together(tmp_path: Path) -> None:
    cells = cells_of("a", "fixed", budgets=(4, 8))
    shards = [planned(tmp_path / str(index), cells) for index in range(2)]
    for index, database in enumerate(shards):
        work.work(database, Working(Shard(index, 2)))
    whole = Database(tmp_path / "s", create=True)
    runs = sum(take_runs(whole, database) for database in shards)
    place(whole, comparison(whole.path), cells)
    frame = finished_frame(whole)
    assert progress(whole).left == 0 and runs == frame["run"].nunique()
    assert sum(take_runs(whole, database) for database in shards) == 0
    assert all(len(Store(whole.path).outcomes(run)[0]) == 2 for run in frame["run"])


def test_failures_are_told_and_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = planned(tmp_path / "s", cells_of("a", "bb", "ccc"))

    def train(lease: leases.Lease, folder: Path) -> leases.Result:
        training = lease.config["training"]
        if training["weight_decay"] == 1.0 and training["learning_rate"] > 0.01:
            raise work.DivergedError("training diverged")
        if training["weight_decay"] == 2.0 and training["seed"] in (1, 2):
            raise SubspaceError("no such thing")
        if training["weight_decay"] == 3.0:
            raise work.DivergedError("training diverged")
        return result_of(lease)

    monkeypatch.setattr(work, "_train", train)
    work.work(database)
    told = failures(database)
    # A rate that diverges while rates are tried is a result; a row none of whose rates works has nothing to report.
    assert len(told) == 3 and sum("no such thing" in line for line in told) == 2
    assert sum(line.startswith("ccc, cola, tiny: no learning rate works") for line in told) == 1
    chosen = Store(database.path).tuned().set_index("row")["rate"]
    assert chosen["a"] == 0.01 and chosen["bb"] == 0.04 and pd.isna(chosen["ccc"])
    assert progress(database).left == 0
    monkeypatch.setattr(work, "_train", without_training())
    place(database, comparison(database.path), cells_of("a", "bb", "ccc"), retry=True)
    work.work(database)
    assert failures(database) == [] and set(Store(database.path).tuned()["rate"]) == {0.04}


# Workers


def _worker(path: Path, log: Path, seconds: float) -> None:
    """Work in a process of its own, whose changes to modules end with it."""
    work._train = without_training(log, seconds)
    work._PAUSE = 0.01
    work.work(Database(path, create=True))


@pytest.mark.parametrize("count", [2, 4])
def test_workers_never_make_a_run_twice(count: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    database = planned(tmp_path / "s", cells_of("a", "bb", "ccc", budgets=(4, 8)))
    workers = [FORK.Process(target=_worker, args=(database.path, log, 0.002)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    made = log.read_text(encoding="utf-8").split()
    runs = Store(database.path).frame()
    assert sorted(made) == sorted(set(runs["run"])) and set(runs["state"]) == {"done"}


@pytest.mark.usefixtures("untrained")
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    """Twenty kills at random moments; what is left is what an undisturbed worker leaves."""
    cells = cells_of("a", "bb", "ccc", budgets=(4, 8))
    whole = planned(tmp_path / "whole", cells)
    work.work(whole)
    database = planned(tmp_path / "s", cells)
    rng, kills = random.Random(0), 0
    while progress(database).left:
        worker = FORK.Process(target=_worker, args=(database.path, tmp_path / "log", 0.004))
        worker.start()
        if kills < 20:
            time.sleep(rng.uniform(0.02, 0.06))
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
    assert kills == 20
    work.tidy(database)  # as the next call does: the last kill may have come before a folder was removed
    pd.testing.assert_frame_equal(finished_frame(database), finished_frame(whole))
    assert not (tmp_path / "s.runs").exists() or not any((tmp_path / "s.runs").iterdir())


def test_a_lease_is_taken_up_when_it_is_lost(tmp_path: Path) -> None:
    database = planned(tmp_path / "s", cells_of("a"), tuning=None, seeds=[1])
    elsewhere = "another machine 1 0.0 abcd"
    lost = leases.claim(database, elsewhere, seconds=0.2)
    assert lost is not None and leases.claim(database, new_owner()) is None  # nobody knows whether it lives
    time.sleep(0.25)
    taken = leases.claim(database, new_owner())
    assert taken is not None and taken.run == lost.run
    assert not leases.renew(database, lost) and not leases.finish(database, lost, result_of(lost))
    assert not leases.fail(database, lost, "late")
    assert leases.finish(database, taken, result_of(taken))
    assert Store(database.path).frame()["state"].tolist() == ["done"]


def test_the_heartbeat_keeps_a_lease(tmp_path: Path) -> None:
    database = planned(tmp_path / "s", cells_of("a"), tuning=None, seeds=[1])
    lease = leases.claim(database, "another machine 1 0.0 abcd", seconds=0.2)
    assert lease is not None
    with leases.heartbeat(database, lease, seconds=0.2):
        time.sleep(0.5)
        assert leases.claim(database, new_owner()) is None
    time.sleep(0.25)
    assert leases.claim(database, new_owner()) is not None


# The file


def test_the_schema_is_that_of_its_migrations(tmp_path: Path) -> None:
    database = Database(tmp_path / "s", create=True)
    with database.read() as connection:
        found = inspect(connection)
        assert set(found.get_table_names()) == set(schema.metadata.tables)
        for name, table in schema.metadata.tables.items():
            columns = {one["name"]: one["nullable"] for one in found.get_columns(name)}
            keys = set(found.get_pk_constraint(name)["constrained_columns"])
            assert set(columns) == {column.name for column in table.c}
            assert keys == {column.name for column in table.primary_key}
            assert all(columns[one.name] == one.nullable for one in table.c if one.name not in keys)


@pytest.mark.usefixtures("untrained")
def test_an_older_store_is_brought_up_to_date_and_a_newer_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = planned(tmp_path / "s", cells_of("a"))
    work.work(database)
    before = Store(database.path).frame()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT",)])
        with pytest.raises(SubspaceError, match="has an older schema: `subspace compare` brings it up to date"):
            Store(database.path)
        with Database(database.path, create=True).read() as connection:
            assert "note" in {one["name"] for one in inspect(connection).get_columns("runs")}
        pd.testing.assert_frame_equal(Store(database.path).frame(), before)
    content = database.path.read_bytes()
    for create in (True, False):
        with pytest.raises(
            SubspaceError, match=r"has schema 2, and this version of the package reads up to 1: upgrade"
        ):
            Database(database.path, create=create)
    assert database.path.read_bytes() == content


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()


def _damaged(path: Path) -> None:
    planned(path, cells_of("a", "bb", "ccc"))
    content = bytearray(path.read_bytes())
    content[4096 : 3 * 4096] = bytes(2 * 4096)
    path.write_bytes(content)


def _truncated(path: Path) -> None:
    planned(path, cells_of("a"))
    path.write_bytes(path.read_bytes()[:5000])


UNUSABLE = {
    "a text": (lambda path: path.write_text("a text that is long enough to have a header" * 20), "is no store of"),
    "a short text": (lambda path: path.write_text("a"), "is no store of"),
    "another database": (_foreign, "is an SQLite file of something else"),
    "damaged": (_damaged, "is damaged"),
    "truncated": (_truncated, "is damaged"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_store_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    make, told = UNUSABLE[name]
    path = tmp_path / "s"
    make(path)
    content = None if path.is_dir() else path.read_bytes()
    with pytest.raises(SubspaceError, match=told) as caught:
        Database(path, create=True)
    assert "\n" not in str(caught.value)
    assert content is None or path.read_bytes() == content
    assert {one.name for one in tmp_path.iterdir()} <= {"s", "s-shm", "s-wal"}  # the latter two are SQLite's


def _on_a_full_disk(path: Path, bytes_left: int, answers: Any) -> None:
    import resource

    size = path.stat().st_size
    work._train = without_training()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + bytes_left, size + bytes_left))
    try:
        work.work(Database(path, create=True))
    except SubspaceError as error:
        answers.put(str(error))
    else:
        answers.put("")


@pytest.mark.usefixtures("untrained")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with limits of files")
@pytest.mark.parametrize("bytes_left", [0, 5_000, 20_000])
def test_a_full_disk_is_told_and_loses_nothing(bytes_left: int, tmp_path: Path) -> None:
    cells = cells_of("a", "bb", "ccc", budgets=(4, 8))
    database = planned(tmp_path / "s", cells)
    answers = FORK.SimpleQueue()
    process = FORK.Process(target=_on_a_full_disk, args=(database.path, bytes_left, answers))
    process.start()
    process.join()
    told = answers.get()
    assert str(database.path) in told and "call again" in told and "\n" not in told
    state = progress(database)
    assert state.failed == 0 and state.left > 0
    work.work(database)
    assert progress(database).left == 0 and failures(database) == []


def test_results_are_read_from_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    database = planned(folder / "s", cells_of("a"))
    rows = Store(database.path).frame()
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write everywhere
    pd.testing.assert_frame_equal(Store(database.path).frame(), rows)
    with pytest.raises(SubspaceError, match="is not writable"):
        Database(database.path, create=True)


def test_an_unknown_run_is_told(tmp_path: Path) -> None:
    store = Store(planned(tmp_path / "s", cells_of("a")).path)
    for ask in (store.config, store.curve, store.scores, store.outcomes):
        with pytest.raises(SubspaceError, match=r"has no (run|outcomes of run) 'abc'"):
            ask("abc")
    with store.database.read() as connection:
        waiting = connection.execute(select(schema.runs.c.id)).scalars().first()
    assert waiting is not None and store.curve(waiting) == [] and store.scores(waiting) == {}
