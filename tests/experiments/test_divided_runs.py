"""Language models, and new tokens, in two processes: a run ends as in one, whatever is divided among them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from subspace_tuning.training import config as configs
from subspace_tuning.training import run as train
from subspace_tuning.training.folder import RunFolder

from ..tasks.decoders import decoder, write_decoder
from .test_new_tokens import NEW, rows_of
from .test_processes import KINDS, PROCESSES, call, printed

EXAMPLES = Path(__file__).parents[2] / "examples"
LORA = {"method": "lora", "r": 4, "pattern": "orthogonal", "pattern_weight": 0.1}

pytestmark = [
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Case:
    """A model, and the settings of a run."""

    model: str
    task: Mapping[str, Any]
    adapter: Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, without dropout, and the rows."""
    made = tmp_path_factory.mktemp("divided")
    shutil.copytree(tiny_model, made / "bert")
    config = json.loads((made / "bert" / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (made / "bert" / "config.json").write_text(json.dumps(config | still))
    write_decoder(made / "llama")
    write_decoder(made / "tied")
    torch.manual_seed(0)
    tied = transformers.LlamaConfig.from_dict(decoder().config.to_dict() | {"tie_word_embeddings": True})
    transformers.LlamaForCausalLM(tied).save_pretrained(made / "tied")
    for task in ("classification", "instruction"):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(task))
        (made / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, Case]:
    few = {"train_rows": 8, "eval_rows": 4}  # whole steps and batches: otherwise processes fill up the last ones
    chats = {"name": "instruction", "data": str(EXAMPLES / "data/chats.jsonl"), "max_length": 256, **few}
    choices = {"name": "commonsense", "data": str(EXAMPLES / "data/commonsense.json"), "max_length": 512, **few}
    new = {**LORA, "new_tokens": list(NEW)}
    tasks = ("classification", "instruction")
    marked = {task: {"name": task, "data": str(folder / f"{task}.jsonl"), **few} for task in tasks}
    return {
        "chats": Case("llama", chats, LORA),
        "choices": Case("llama", choices, {"method": "ssb"}),
        "new tokens of an encoder": Case("bert", {**marked["classification"], "max_length": 16}, new),
        "new tokens of a decoder": Case("llama", {**marked["instruction"], "max_length": 128}, new),
        "new tokens of a tied decoder": Case("tied", {**marked["instruction"], "max_length": 128}, new),
    }


def write(folder: Path, case: Case, output: str, processes: int) -> Path:
    """Write the config of a run whose optimiser steps see the same rows in any number of processes."""
    training = {"max_steps": 4, "batch_size": 2, "eval_batch_size": 4, "gradient_accumulation": 4 // processes}
    training |= {"eval_steps": 1, "learning_rate": 0.01, "threads": 1, "device": "cpu", "precision": "float32"}
    settings = {
        "model": str(folder / case.model),
        "output": str(folder / output),
        "task": dict(case.task),
        "adapter": dict(case.adapter),
        "training": training,
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_runs_end_as_in_one_process(kind: str, folder: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    if kind in ("fsdp", "zero3"):  # refuse them: test_new_tokens.py
        cases = {name: case for name, case in cases.items() if "new tokens of a" not in name or "encoder" in name}
    paths = {name: write(folder, case, f"{kind} {name}".replace(" ", "-"), PROCESSES) for name, case in cases.items()}
    assert call(tmp_path / "log", [f"{kind} {path}" for path in paths.values()]) == [0, 0], printed(
        tmp_path / "log", "err"
    )
    for name, case in cases.items():
        alone = train.run(configs.load(write(folder, case, f"alone {name}".replace(" ", "-"), 1)), progress=False)
        record = RunFolder(folder / paths[name].stem).record()
        assert record is not None and record["processes"] == PROCESSES
        figures = [
            [entry.get("loss", entry[record["metric"]]) for entry in one["history"]] for one in (alone.record, record)
        ]
        assert figures[1] == pytest.approx(figures[0], abs=1e-4), name
        assert len(set(figures[0])) > 1 or record["metric"] == "accuracy", name  # that of a few rows may stay
        one, other = (
            load_file(place / "adapter_model.safetensors")
            for place in (alone.folder, folder / paths[name].stem / "adapter")
        )
        assert one.keys() == other.keys(), name
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, atol=1e-3, rtol=1e-3, msg=f"{name}: {key}")
