"""Acts as if some packages were not installed, uses the others, and prints what came of it as JSON.

A program of its own, since a process forgets no import. Its argument is JSON: the packages that are refused, the
function of this file to run, and what to call it with.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from subspace_tuning.methods import Method


class Installed(PathFinder):
    """Finds on the path what Python finds there, but for the refused packages."""

    refused: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in cls.refused else super().find_spec(fullname, path, target)


def core(parts: list[str], calls: list[str], commands: list[list[str]], of_the_command: list[str]) -> dict[str, Any]:
    """Use every method, ask for what needs an extra, and call the command without and with what it is made of."""
    import transformers

    from subspace_tuning import methods

    architecture = transformers.BartConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=16,
    )
    found: dict[str, Any] = {"methods": {case.name: works(case, architecture) for case in methods.every()}}
    found["parts"] = {name: message(partial(importlib.import_module, name)) for name in parts}
    found["calls"] = {name: message(globals()[name]) for name in calls}
    found["without the command"] = called(["methods"])
    Installed.refused -= set(of_the_command)
    with tempfile.TemporaryDirectory() as folder:
        architecture.architectures = ["BartForSequenceClassification"]
        architecture.save_pretrained(folder)
        found["commands"] = [called([word.replace("MODEL", folder) for word in words]) for words in commands]
    return found


def works(case: Method, architecture: PretrainedConfig) -> bool:
    """Adapt, train, save, load and merge; tell whether what was loaded or merged does what was trained."""
    import torch
    import transformers
    from peft import PeftModel, get_peft_model

    from subspace_tuning import SubspaceConfig, calibrate, parameter_groups, penalty, schedule

    torch.manual_seed(0)
    base = transformers.BartForSequenceClassification(architecture)
    batch = {"input_ids": torch.tensor([[0, 5, 6, 2], [0, 8, 7, 2]]), "labels": torch.tensor([0, 1])}
    config = SubspaceConfig(method=case.name, r=2, budget=0.1 if case.budget else None, task_type="SEQ_CLS")
    if case.needs_calibration:
        config = calibrate(base, config, [batch])
    model = get_peft_model(copy.deepcopy(base), config)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3))
    plan = schedule(model, 1000, scores=dict)
    (model(**batch).loss + penalty(model)).backward()
    optimizer.step()
    plan.step(1, optimizer)
    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wanted = model(**batch).logits
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(base, folder).eval()
        same = torch.equal(loaded(**batch).logits, wanted)
        if case.formula.is_linear:
            same &= torch.allclose(model.merge_and_unload()(**batch).logits, wanted, atol=1e-5)
    return same


def solve() -> None:
    """Ask for factors that have no closed form."""
    import torch

    from subspace_tuning.theory import approximate

    approximate("W + s * ((A @ B) * (A @ B))", torch.randn(4, 3), torch.randn(4, 3), r=1)


def find_minilm() -> None:
    """Ask for the packaged model."""
    from subspace_tuning.models.locate import locate

    locate("minilm")


def draw() -> None:
    """Ask for a figure."""
    from subspace_tuning.report.demo import plot

    plot([], Path("none.png"))


def write_parquet() -> None:
    """Ask for a table in Parquet."""
    from subspace_tuning.report.tables import check_table

    check_table("none.parquet")


def message(call: Callable[[], object]) -> str:
    """Return the line of the error that says which extra is missing."""
    from subspace_tuning.extras import MissingExtraError

    try:
        call()
    except MissingExtraError as error:
        return str(error)
    return ""


def called(words: list[str]) -> tuple[int, str, str]:
    """Call `subspace`; return the exit code and what it printed on stdout and on stderr."""
    from subspace_cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(words)
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command did not exit")


def ring(name: str, call: str | None) -> list[str]:
    """Import every module of a ring, and make a call that its extra is for; return the modules."""
    package = importlib.import_module("subspace_cli" if name == "cli" else f"subspace_tuning.{name}")
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [module for module in found if not module.endswith("__main__")]  # which runs the command
    for module in modules:
        importlib.import_module(module)
    if call is not None:
        globals()[call]()
    return modules


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    Installed.refused = set(task.pop("refused"))
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
    print(json.dumps(globals()[task.pop("run")](**task)))
