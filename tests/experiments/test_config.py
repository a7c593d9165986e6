"""Configs: read, overridden, written back, and refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from subspace_tuning.comparison import config as comparisons
from subspace_tuning.errors import SubspaceError
from subspace_tuning.training.config import load
from subspace_tuning.training.sections import Keep, Precision, RunConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))

BASIC = """
model: minilm
output: runs/one
task: {name: mrpc, data: glue}
adapter: {method: lora, r: 4, target_modules: [query, value]}
training: {learning_rate: 1e-3, keep: best}
"""


def _load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def test_a_file_is_read_with_its_types_and_defaults(tmp_path: Path) -> None:
    run = _load(tmp_path, BASIC)
    assert run.adapter.target_modules == ["query", "value"]
    assert run.training.learning_rate == pytest.approx(1e-3)
    assert run.training.keep is Keep.best
    assert run.training.precision is Precision.auto
    assert run.task.max_length == 128


def test_overrides_take_the_place_of_the_files_values(tmp_path: Path) -> None:
    overrides = [
        "training.seed=7",
        "adapter.target_modules=all-linear",
        "training.learning_rate=null",
        "task.name=cola",
    ]
    run = _load(tmp_path, BASIC, *overrides)
    assert (run.training.seed, run.adapter.target_modules, run.task.name) == (7, "all-linear", "cola")
    assert run.training.learning_rate is None
    assert run.adapter.r == 4


def test_a_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    run = _load(tmp_path, BASIC, "adapter.rank_pattern={query: 2}")
    assert _load(tmp_path, yaml.safe_dump(run.resolved())) == run


def test_every_config_in_examples_is_read() -> None:
    assert EXAMPLES
    for path in EXAMPLES:
        (comparisons.load if path.stem == "compare" else load)(path)


BAD: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "malformed": ("model: [a", (), "is not well-formed YAML: .* in line 1|is not well-formed YAML: .* in line 2"),
    "a key twice": ("model: a\nmodel: b", (), "found duplicate key model in line 2"),
    "a list": ("- model: a", (), "does not contain keys with values"),
    "a number": ("3", (), "does not contain keys with values"),
    "empty": ("", (), "'model' must be given"),
    "no method": (BASIC.replace("method: lora, r: 4", "r: 4"), (), "adapter needs a method or a formula: neither"),
    "method and formula": (BASIC, ("adapter.formula=W",), "adapter needs a method or a formula: both"),
    "unknown key": (
        BASIC,
        ("training.learning_rat=1",),
        "unknown key 'training.learning_rat'; did you mean learning_rate",
    ),
    "unknown section": (BASIC + "trainin: {}", (), "unknown key 'trainin'; did you mean training"),
    "wrong type": (BASIC, ("training.epochs=many",), "training.epochs: Value 'many' of type 'str' could not be"),
    "wrong choice": (BASIC, ("training.keep=worst",), r"training.keep: Invalid value 'worst', expected one of"),
    "not a section": (BASIC, ("training=3",), "int is not a subclass"),
    "null": (BASIC, ("training.seed=null",), "training.seed"),
    "interpolation": (BASIC, ("output=${nothing}",), "output: Interpolation key 'nothing' not found"),
    "override without value": (BASIC, ("training.seed",), "override 'training.seed' is not of the form key=value"),
    "override without key": (BASIC, ("=3",), "unknown key ''"),
    "override malformed": (BASIC, ("output=[a",), "not well-formed"),
    "unknown task": (BASIC, ("task.name=mrcp",), "unknown task 'mrcp': did you mean mrpc"),
    "learning rate": (BASIC, ("training.learning_rate=0",), "training.learning_rate is 0: it must be positive"),
    "infinite": (BASIC, ("training.learning_rate=.inf",), "training.learning_rate is inf: it must be positive"),
    "not a number": (BASIC, ("training.weight_decay=.nan",), "training.weight_decay is nan"),
    "batch size": (BASIC, ("training.batch_size=-4",), "training.batch_size is -4: it must be 1 to 2,147,483,647"),
    "warm-up": (
        BASIC,
        ("training.warmup_ratio=1.5",),
        "training.warmup_ratio is 1.5: it must be at least 0 and below 1",
    ),
    "seed": (BASIC, ("training.seed=-1",), "training.seed is -1"),
    "patience": (
        BASIC,
        ("training.patience=2", "training.keep=last"),
        "training.patience stops after the best figure, which training.keep",
    ),
    "useless": (BASIC, ("adapter.method=full",), "adapter.r has no meaning with method 'full'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    text, overrides, told = BAD[case]
    with pytest.raises(SubspaceError, match=told) as caught:
        _load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path, write: Callable[[Mapping[str, Any]], Path]) -> None:
    with pytest.raises(SubspaceError, match=r"config file '.*nowhere\.yaml' does not exist"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(SubspaceError, match="cannot read config file"):
        load(tmp_path)
