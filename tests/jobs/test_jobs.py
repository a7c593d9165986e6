"""Jobs: what has been done is done once, by one process at a time, for one description, whatever ends a process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning.errors import SubspaceError
from subspace_tuning.files import is_temporary, written
from subspace_tuning.jobs.description import canonical, difference, digest
from subspace_tuning.jobs.folder import JOB, alone, is_vacant, owned, parts
from subspace_tuning.jobs.units import kept, measured, perform
from subspace_tuning.provenance import KEYS, provenance

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
DESCRIPTIONS = st.dictionaries(st.text(), VALUES, max_size=4)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and SIGKILL")


@contextmanager
def beside(target: Callable[..., object], *args: Any) -> Iterator[BaseProcess]:
    """Another process, which is killed in the end."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.001)


# Descriptions


def shuffled(value: Any, drawn: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, drawn)) for key, item in value.items()]
        return dict(drawn.sample(items, len(items)))
    return [shuffled(item, drawn) for item in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(DESCRIPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(description: dict[str, Any], drawn: random.Random) -> None:
    other = shuffled(description, drawn)
    assert canonical(other) == canonical(description)
    assert digest(other) == digest(description)
    assert difference(description, other) is None


@settings(max_examples=40, deadline=None)
@given(DESCRIPTIONS, DESCRIPTIONS)
def test_unlike_descriptions_have_unlike_digests(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (canonical(one) == canonical(other)) == (digest(one) == digest(other))
    if canonical(one) == canonical(other):
        assert difference(one, other) is None


@pytest.mark.parametrize("key", ["a", "c.d"])
def test_the_first_difference_is_told_unless_it_is_ignored(key: str) -> None:
    before: dict[str, Any] = {"a": 1, "b": [2, 3], "c": {"d": "x"}}
    now = before | ({"a": 5} if key == "a" else {"c": {"d": 5}})
    assert difference(before, now) == f"{key} is {before['a'] if key == 'a' else 'x'!r} there and 5 now"
    assert difference(before, now, ignoring=[key]) is None


def test_sets_and_paths_are_plain_and_objects_are_not() -> None:
    assert canonical({"a": {"y", "x"}, "b": Path("c"), "d": (1, 2)}) == '{"a":["x","y"],"b":"c","d":[1,2]}'
    with pytest.raises(TypeError):
        canonical({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})


# Folders


def hold(folder: Path, ready: Path) -> None:
    with alone(folder):
        ready.touch()
        time.sleep(60)


@forks
def test_one_process_at_a_time_and_a_killed_one_leaves_the_folder_free(tmp_path: Path) -> None:
    folder, ready = tmp_path / "job", tmp_path / "ready"
    with beside(hold, folder, ready) as process:
        until(ready.exists)
        with pytest.raises(SubspaceError, match=f"another process is at work in {folder}"), alone(folder):
            pass
        process.kill()
        process.join()
        with alone(folder):
            pass


def test_a_folder_belongs_to_one_description(tmp_path: Path) -> None:
    for _ in range(2):
        with owned(tmp_path, {"rank": 8}):
            (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    other = pytest.raises(SubspaceError, match="rank is 8 there and 4 now; choose another folder")
    with other, owned(tmp_path, {"rank": 4}):
        pass
    assert json.loads((tmp_path / JOB).read_text(encoding="utf-8")) == {"rank": 8}


def test_what_belongs_to_no_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SubspaceError, match="has no results"), owned(tmp_path, {}):
        pass
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SubspaceError, match="cannot be made"), owned(file, {}):
        pass


def test_what_a_killed_process_was_writing_takes_no_folder(tmp_path: Path) -> None:
    with written(tmp_path / JOB) as temporary:
        assert is_temporary(temporary)
        temporary.write_text("{", encoding="utf-8")
        half = temporary.rename(tmp_path / ".job.json.999999999.tmp")
        assert is_vacant(tmp_path)
        half.rename(temporary)
    half = (tmp_path / JOB).rename(tmp_path / ".job.json.999999999.tmp")
    with owned(tmp_path, {"rank": 8}):
        assert not half.exists()


def test_parts_stay_until_the_whole_is_there(tmp_path: Path) -> None:
    output, found = tmp_path / "whole", []

    def interrupted(rank: int) -> None:
        with parts(output, {"rank": rank}) as folder:
            found.append(sorted(path.name for path in folder.iterdir()))
            (folder / f"of-{rank}").touch()
            raise KeyboardInterrupt

    for rank in (8, 4, 8):
        with pytest.raises(KeyboardInterrupt):
            interrupted(rank)
    assert found == [[], [], ["of-8"]], "another description has other parts"
    with parts(output, {"rank": 8}):
        pass
    with pytest.raises(ZeroDivisionError), parts(output, {"rank": 8}):
        _ = 1 / 0  # before there is a part
    assert list(tmp_path.iterdir()) == []


# Units


def work(unit: int, log: Path | None = None, pause: float = 0.0) -> dict[str, Any]:
    """A result that the unit alone decides, in floating point; the log says how often it was made."""
    time.sleep(pause)
    drawn = random.Random(unit)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{unit}\n")
    return {"unit": unit, "figures": [drawn.gauss(0, 1) / 3 for _ in range(5)], "pair": (unit, unit)}


UNITS = {f"unit {number}": number for number in range(12)}


def whole_job(output: Path, log: Path | None, pause: float) -> None:
    with measured(output, {"a": 1}, UNITS, lambda unit: work(unit, log, pause)) as found:
        output.write_text(json.dumps(found), encoding="utf-8")


@forks
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_a_job_ends_with_the_same_results(seed: int, tmp_path: Path) -> None:
    """And a unit whose result was written is not made again: at most one per kill is."""
    drawn, log = random.Random(seed), tmp_path / "log"
    whole_job(tmp_path / "whole.json", None, 0.0)
    parted, kills = tmp_path / "parted.json", 0
    while not parted.exists():
        assert kills < 200
        with beside(whole_job, parted, log, 0.004) as process:
            process.join(drawn.uniform(0.02, 0.06) * (1 + kills / 10))
            kills += process.is_alive()
    assert kills > 0
    assert parted.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert len(UNITS) <= len(log.read_text(encoding="utf-8").split()) <= len(UNITS) + kills


def test_results_are_the_same_new_and_read_and_say_where_they_come_from(tmp_path: Path) -> None:
    reported: list[str] = []
    new = perform(tmp_path, UNITS, work, on_result=lambda name, result: reported.append(name))
    assert reported == list(UNITS)
    assert kept(tmp_path, UNITS) == new == perform(tmp_path, UNITS, fail)
    assert all(set(KEYS) <= one.keys() for one in new.values())
    assert provenance().keys() == set(KEYS)


def fail(unit: int) -> Mapping[str, Any]:
    if unit == 1:
        raise ValueError("the first one is ill")
    return work(unit)


def test_a_result_that_was_not_written_whole_is_never_read(tmp_path: Path) -> None:
    (tmp_path / ".unit 0.json.999999999.tmp").write_text('{"unit": 0, "figures": [0', encoding="utf-8")
    assert kept(tmp_path, UNITS) == {}
    found = perform(tmp_path, UNITS, work)
    assert found["unit 0"]["figures"] == work(0)["figures"]
    (tmp_path / "unit 0.json").write_text('{"unit": 0, "figures": [0', encoding="utf-8")
    with pytest.raises(SubspaceError, match=r"unit 0\.json cannot be read: .*; remove it to compute it again"):
        perform(tmp_path, UNITS, work)


@pytest.mark.slow
def test_one_unit_that_fails_in_its_process_does_not_take_the_others(tmp_path: Path) -> None:
    units = {"good": 0, "ill": 1}
    with pytest.raises(SubspaceError, match="1 of 2 failed: ill; the same call retries them"):
        perform(tmp_path, units, fail, workers=2)
    assert set(kept(tmp_path, units)) == {"good"}
    assert perform(tmp_path, units, work)["ill"]["unit"] == 1


def endless(unit: Path) -> dict[str, Any]:
    (unit / "ready").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)
    return {}


@forks
@pytest.mark.slow
def test_the_processes_of_units_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=perform, args=(tmp_path, {"unit": tmp_path}, endless), kwargs={"workers": 1})
    process.start()
    until(lambda: ready.exists() and ready.read_text(encoding="utf-8"), 240)
    worker = int(ready.read_text(encoding="utf-8"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 30)
