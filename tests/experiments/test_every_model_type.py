"""`subspace params` and `recommend` work on every model type that the table of placements has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from subspace_tuning import methods
from subspace_tuning.adapters.recommend import candidates, from_tuned, recommend, without_place
from subspace_tuning.counting.count import count_hosted, count_in
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import HOSTED
from subspace_tuning.models.checkpoint import Checkpoint
from subspace_tuning.models.heads import head_modules
from subspace_tuning.models.meta import without_weights
from subspace_tuning.tuner import SubspaceConfig

from ..tuner.test_roles import CASES, Case
from .test_extract_architectures import build, tune

every_case = pytest.mark.parametrize("case", CASES, ids=str)
OFTEN = ("llama", "bert", "vit", "whisper", "clip", "distilbert")


@every_case
def test_a_head_is_never_a_stack_of_blocks(case: Case) -> None:
    model = without_weights(case.tiny_config())
    heads = [model.get_submodule(name) for name in head_modules(model) if name in dict(model.named_modules())]
    assert not any(isinstance(part, torch.nn.ModuleList) for head in heads for part in head.modules())
    counted = count_in(case.tiny_config(), SubspaceConfig(method="lora", r=1))
    assert 0 < counted.trainable < counted.total and counted.matrices > 0


@pytest.mark.parametrize("case", [case for case in CASES if case.model_type in OFTEN], ids=str)
def test_every_method_is_counted_or_left_out_by_a_line(case: Case) -> None:
    named = [*(known.name for known in methods.every()), *HOSTED]
    lines = [line for line in (refusal(case, name) for name in named) if line]
    assert not any("\n" in line or "(?:" in line for line in lines), lines
    assert len(named) - len(lines) > 15


def refusal(case: Case, name: str) -> str | None:
    """Count a method; return why it cannot be counted."""
    config = case.tiny_config()
    try:
        count_hosted(config, name, 2) if name in HOSTED else count_in(config, SubspaceConfig(method=name, r=1))
    except SubspaceError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:left out. .*, since only linear layers are compared")  # experts
@pytest.mark.parametrize(
    "case",
    [case if case.model_type in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_methods_without_a_place_are_left_out_of_a_recommendation(case: Case, tmp_path: Path) -> None:
    model = build(case.tiny_config())
    model.save_pretrained(tmp_path / "base")
    tune(model)
    model.save_pretrained(tmp_path / "tuned")
    tuned = Checkpoint(str(tmp_path / "tuned"))
    moves = from_tuned(Checkpoint(str(tmp_path / "base")), tuned)
    chosen = [one for one in candidates()[0] if one.name in ("lora", "ssb", "ia3", "xattn", "sam_parser")]
    found: list[Any] = recommend(tuned.model, moves, "20permille", chosen)
    missing = without_place(tuned.model, moves, chosen)
    assert {one.method for one in found} - {"lora, ranks by spectrum"} == {one.name for one in chosen} - set(missing)
    assert "lora" not in missing
