"""Real trainers: the stock Trainer alone and in two processes, TRL, sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from .scripts import module_of

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "trainers" / "run.py"


@pytest.fixture(scope="module")
def trainers() -> ModuleType:
    """The script that writes the published table."""
    return module_of(SCRIPT)


def agree(runs: list[dict[str, object]]) -> None:
    first = runs[0]
    for run in runs:
        for figure in ("losses", "penalties", "norm"):
            assert run[figure] == pytest.approx(first[figure], rel=1e-6, abs=1e-6), run


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("method", ["lora, MPC_o", "adalora"])
def test_accumulation_changes_no_loss(trainers: ModuleType, model: str, method: str) -> None:
    runs = [trainers.stock(model, method, accumulation, 1) for accumulation in (1, 4)]
    agree(runs)
    assert all(value > 0.01 for value in runs[0]["penalties"])


@pytest.mark.slow
def test_two_processes_change_no_loss(trainers: ModuleType) -> None:
    alone, together = trainers.every(1), trainers.in_processes(2)
    for index in range(0, len(alone), 2):
        agree(alone[index : index + 2] + together[index : index + 2])


@pytest.mark.parametrize(
    "name",
    ["Trainer, label_smoothing_factor", "Trainer, return_dict=False", "TRL SFT", "TRL DPO", "sentence-transformers"],
)
def test_the_penalty_acts_in(trainers: ModuleType, name: str) -> None:
    norms = trainers.acts(name)
    assert abs(norms["0.1"] - norms["0"]) > 1e-3
