"""The learning rate of a run: given, derived from the formula, or the method's constant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from subspace_tuning import methods
from subspace_tuning.errors import SubspaceError
from subspace_tuning.training.config import load
from subspace_tuning.training.run import run

from .calls import printed_by

Write = Callable[[Mapping[str, Any]], Path]


def recorded(settings: dict[str, Any], write: Write, adapter: dict[str, Any], **training: Any) -> dict[str, Any]:
    settings["adapter"] = adapter
    settings["training"] |= {"max_steps": 1} | training
    return run(load(write(settings)), progress=False).record


def test_a_derived_rate_is_used_and_recorded(settings: dict[str, Any], write: Write) -> None:
    record = recorded(settings, write, {"method": "lokr"}, learning_rate="derived")
    assert record["learning_rate"] == record["derived_learning_rate"] > 0
    assert record["learning_rate_origin"] == "derived"


def test_the_default_is_derived_where_sweeps_support_it(settings: dict[str, Any], write: Write) -> None:
    record = recorded(settings, write, {"method": "pissa"}, learning_rate=None)
    assert methods.get("pissa").derives_rate and record["learning_rate_origin"] == "derived"


def test_the_default_is_the_constant_elsewhere(settings: dict[str, Any], write: Write) -> None:
    record = recorded(settings, write, {"method": "sam_parser"}, learning_rate=None)
    assert (record["learning_rate"], record["learning_rate_origin"]) == (5e-3, "constant")
    assert record["derived_learning_rate"] != 5e-3


def test_full_fine_tuning_has_a_constant_and_no_derived_rate(settings: dict[str, Any], write: Write) -> None:
    record = recorded(settings, write, {"method": "full"}, learning_rate=None)
    assert (record["learning_rate"], record["derived_learning_rate"]) == (5e-5, None)


@pytest.mark.parametrize(("factor", "warned"), [(0.1, True), (0.3, False), (10.0, True)])
def test_a_rate_far_from_the_derived_one_is_told(
    settings: dict[str, Any],
    write: Write,
    caplog: pytest.LogCaptureFixture,
    factor: float,
    warned: bool,
    tmp_path: Path,
) -> None:
    derived = recorded(settings, write, {"method": "lora"}, learning_rate="derived")["learning_rate"]
    settings["output"] = str(tmp_path / "again")
    with caplog.at_level(logging.WARNING):
        record = recorded(settings, write, {"method": "lora"}, learning_rate=factor * derived)
    assert record["learning_rate_origin"] == "given"
    assert [f"{derived:.3g} that follows from the formula" in line for line in caplog.messages] == [True] * warned


@pytest.mark.parametrize(
    ("method", "rate", "told"),
    [
        ("lora", "fast", "training.learning_rate is 'fast': it must be a number or derived"),
        ("full", "derived", "no meaning with method 'full', which is not a formula"),
        ("prefix_tuning", "derived", "no meaning with method 'prefix_tuning', which is not a formula"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(
    settings: dict[str, Any], write: Write, method: str, rate: str, told: str
) -> None:
    with pytest.raises(SubspaceError, match=told):
        recorded(settings, write, {"method": method}, learning_rate=rate)


def test_params_prints_the_derived_rate_beside_the_default(
    tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the model's folder may be long
    words = ["params", str(tiny_model), "-m", "lora", "-m", "prefix_tuning", "-f", "D1 @ W", "--steps"]
    head, *rows = printed_by(words, capfd).splitlines()
    assert head.split()[-4:] == ["derived", "rate", "constant", "default"]
    told = {row.split()[0]: row.split()[-3:] for row in rows if row}
    assert told["lora"] == ["1.0e-03", "1.0e-03", "derived"]
    assert told["prefix_tuning"] == ["-", "5.0e-03", "constant"]
    assert told["D1"][1:] == ["1.0e-03", "derived"]
