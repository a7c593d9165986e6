"""What can answer: the adapters of several runs in one model, and its base where the base has an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import SubspaceError, nearest
from ..tasks.data.records import Records
from ..training.folder import RunFolder
from ..training.together import together
from ..training.use import Finished
from ..tuner import SubspaceConfig
from ..tuner.calling import BASE
from ..tuner.mixing import rows_named

NO_ADAPTER = "base"
"""The name under which the base model answers."""
_PROBE = "a b c"
_CLOSE = 1e-2  # of the largest output: quantised activations are rounded coarsely

Input: TypeAlias = str | dict[str, str]
"""A row as a request holds it: its text, or its texts by column."""


@dataclass(frozen=True)
class Choice:
    """An adapter, or the base model alone, that can be chosen to answer.

    Attributes:
        name: the name that a request gives.
        adapter: the adapter's name in the model.
        run: its run; for the base model the first one, whose task and tokenizer it uses.
        apart: why its rows cannot share a call of the model with those of others; None if they can.
        about: its method, formula, parameters and score, as plain data.
    """

    name: str
    adapter: str
    run: Finished
    apart: str | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Choices:
    """All that can answer, in one model.

    Attributes:
        by_name: the choices by their names.
        base: the name of the base model.
        task: the name of the task.
        columns: the columns of a row's texts.
    """

    by_name: Mapping[str, Choice]
    base: str
    task: str
    columns: tuple[str, ...]

    def chosen(self, names: Sequence[str] | None) -> list[Choice]:
        """Return choices by name, by default all. Raises SubspaceError if a name is unknown."""
        wanted = list(dict.fromkeys(self.by_name if names is None else names))
        if not wanted:
            raise SubspaceError("adapters is empty: name at least one")
        for name in wanted:
            if name not in self.by_name:
                raise SubspaceError(f"there is no adapter {name!r}; {nearest(name, self.by_name)}")
        return [self.by_name[name] for name in wanted]

    def columns_of(self, inputs: Sequence[Input]) -> list[tuple[str, ...]]:
        """Return the texts of each column. Raises SubspaceError if an input has other columns, or no text in one."""
        rows = [{self.columns[0]: one} if isinstance(one, str) else one for one in inputs]
        for number, row in enumerate(rows, start=1):
            if row.keys() != {*self.columns}:
                given = f"columns {', '.join(row)}" if row else "no columns"
                raise SubspaceError(f"input {number} has {given}, and the task has {', '.join(self.columns)}")
        columns = {name: [row[name] for row in rows] for name in self.columns}
        records = Records("inputs", columns, range(1, len(rows) + 1), "input")
        return [records.texts(name, "inputs") for name in self.columns]


def choices_of(paths: Sequence[str | Path], base: str | None = None) -> Choices:
    """Return the choices that finished runs offer.

    Args:
        paths: the runs' folders, or the folders of their adapters.
        base: the place of the base model, if it has moved since the runs.

    Raises:
        SubspaceError: the runs do not share one model (see ``together``), or their rows are not texts.
    """
    runs = together(paths, base)
    first = next(iter(runs.values()))
    if not first.task.text_columns:
        raise SubspaceError(f"the runs are of task {first.task.name}, whose rows are not texts: use `subspace predict`")
    records = [_record(run.folder) for run in runs.values()]
    found = [
        Choice(name, adapter, run, why_apart(run, adapter), _about(run, adapter, record))
        for name, record, (adapter, run) in zip(_names(runs.values(), records), records, runs.items(), strict=True)
    ]
    if not any(one.about["trained"]["head"] for one in found):  # a fresh head has no answer
        about = {"method": None, "formula": "W", "trained": {"adapter": 0, "head": 0}, "score": None}
        found.append(Choice(NO_ADAPTER, BASE, first, why_apart(first, BASE), about))
    folder = Path(first.base).expanduser()
    told = folder.name if folder.is_dir() else first.base  # nothing of the machine's paths
    return Choices({one.name: one for one in found}, told, first.task.name, first.task.text_columns)


def _names(runs: Iterable[Finished], records: Iterable[Any]) -> list[str]:
    """Return the shortest ends that tell the paths of runs apart; an adapter without a record has its own path."""
    folders = (run.folder.resolve() for run in runs)
    paths = [folder if record is None else folder.parent for folder, record in zip(folders, records, strict=True)]

    def ends(path: Path) -> Iterator[str]:
        for first in range(len(path.parts) - 1, -1, -1):
            yield "/".join(path.parts[first:])

    taken = [NO_ADAPTER, *(end for path in paths for end in ends(path))]
    return [next(end for end in ends(path) if taken.count(end) == 1) for path in paths]


def _record(folder: Path) -> dict[str, Any] | None:
    """Return the record of the run whose result is in a folder; None if the folder stands by itself."""
    record = RunFolder(folder.parent).record()
    return record if record is not None and record["result"] == folder.name else None


def _about(run: Finished, adapter: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    model: Any = run.model
    config = model.peft_config[adapter]
    assert isinstance(config, SubspaceConfig)
    sizes = {
        part: sum(p.numel() for name, p in model.named_parameters() if f".{place}.{adapter}." in f"{name}.")
        for part, place in (("adapter", "subspace_params"), ("head", "modules_to_save"))
    }
    return {
        "method": config.method,
        "formula": str(config.resolved.formula),
        "trained": sizes,
        "score": None if record is None else _score(record),
    }


def _score(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score of a run, with its interval, and that of a constant prediction."""
    return {
        "metric": record["metric"],
        "value": record["score"],
        "interval": record["score_interval"],
        "constant": record["baseline_score"],
    }


@contextmanager
def acting(model: Any, adapters: Sequence[str]) -> Iterator[None]:
    """Give each row of the batches of a model called in the body its own adapter."""
    # What a module outside the adapters' layers does depends on the active one.
    active = next((name for name in adapters if name != BASE), None)
    if active is not None:
        model.set_adapter(active, inference_mode=True)
    switched = nullcontext() if active is not None else model.disable_adapter()
    named = rows_named(model, adapters) if len({*adapters}) > 1 else nullcontext()
    with switched, named:
        yield


@torch.no_grad()
def why_apart(run: Finished, adapter: str) -> str | None:
    """Return why rows of an adapter cannot share a call of the model with rows of others, or None if they can.

    Tried on two rows: with the base model in the other row, the adapter must return what it returns alone.
    """
    if run.task.shared_call is None:
        return f"task {run.task.name} calls the model several times for a row"
    tokens = torch.tensor([run.processor(_PROBE)["input_ids"]] * 2, device=next(run.model.parameters()).device)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def first_of(adapters: Sequence[str]) -> Tensor:
        with acting(run.model, adapters):
            return run.task.forward(run.model, batch)[0]

    alone = first_of([adapter, adapter])
    try:
        mixed = first_of([adapter, BASE])
    except (TypeError, ValueError) as error:
        return " ".join(str(error).split())
    close = (alone - mixed).abs().max() <= _CLOSE * alone.abs().max()
    return None if bool(close) else "its outputs would depend on the other rows"
