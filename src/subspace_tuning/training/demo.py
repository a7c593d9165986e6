"""The demo: three methods, one of them written on the spot, on a pretrained encoder from the package index.

The task is to tell acceptable English sentences from unacceptable ones. The sentences are generated; those of the test
set share no content words with the training set, so the model learns grammar, not words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SubspaceError
from ..files import check_file, check_folder, write_text
from ..tasks.data.acceptability import Example, generate
from .folder import RunFolder
from .run import run
from .sections import AdapterSection, Precision, RunConfig, TaskSection, TrainingSection

FIGURE = "demo.png"
"""The name of the plot in the demo's folder."""
_DATA = "data"

EPOCHS, BATCH, LONGEST = 3, 16, 32
TRAIN_ROWS, TEST_ROWS = 2600, 600
HEAD_RATE = 5e-4


@dataclass(frozen=True)
class Entry:
    """A method of the demo: its part of the config, and its own learning rate."""

    title: str
    adapter: AdapterSection
    learning_rate: float


ENTRIES = (
    Entry("ssb", AdapterSection(method="ssb"), 5e-3),
    Entry("lora", AdapterSection(method="lora", r=8), 1e-3),
    Entry("your formula", AdapterSection(formula="D1 @ W @ D2 + s * A @ B", r=4), 1e-3),
)


@dataclass(frozen=True)
class DemoResult:
    """The result of one method. Scores are accuracies on the test sentences, between 0 and 1."""

    title: str
    formula: str
    trainable: int
    per_mille: float
    accuracy: float
    majority: float
    seconds: float


def demo(folder: Path, seed: int = 0, *, overwrite: bool = False, progress: bool = True) -> Iterator[DemoResult]:
    """Fine-tune with each method in turn; finished runs are not repeated.

    Args:
        folder: the folder for the sentences and one run per method.
        seed: the seed for the sentences, the head and the order of rows.
        overwrite: discard earlier runs.
        progress: show progress bars.

    Raises:
        SubspaceError: the folder holds something else.
    """
    rows = {"train": generate("train", TRAIN_ROWS, seed), "validation": generate("test", TEST_ROWS, seed)}
    files = {folder / _DATA / f"{split}.jsonl": _lines(split_rows) for split, split_rows in rows.items()}
    configs = [_config(entry, folder, seed) for entry in ENTRIES]
    _check(folder, files, configs, overwrite)
    (folder / _DATA).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_text(path, text)
    return (
        _result(entry, run(config, overwrite=overwrite, progress=progress).record)
        for entry, config in zip(ENTRIES, configs, strict=True)
    )


def _check(folder: Path, files: Mapping[Path, str], configs: Sequence[RunConfig], overwrite: bool) -> None:
    """Refuse, before anything is written, a folder that is not a demo's or belongs to another seed."""
    check_folder(folder)
    own = {_DATA, FIGURE, *(Path(config.output).name for config in configs)}
    held = _names(folder)
    if held and (held - own or _DATA not in held or _names(folder / _DATA) - {path.name for path in files}):
        raise SubspaceError(f"output folder {folder} is not empty and has no demo: choose another")
    replaceable = overwrite and any((Path(config.output) / "started.json").is_file() for config in configs)
    for path, text in files.items():
        if path.exists() and not replaceable and path.read_bytes() != text.encode():
            way = "" if overwrite else ", or give --overwrite if they are an earlier demo's"
            raise SubspaceError(f"{path} holds other sentences: choose another output{way}")
    if held:
        check_file(folder / FIGURE)
    for config in configs:
        RunFolder(config.output).check(config.resolved(), overwrite=overwrite)


def _names(folder: Path) -> set[str]:
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name for path in found if not path.name.startswith(".")}  # left by a killed process


def _lines(rows: list[Example]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _config(entry: Entry, folder: Path, seed: int) -> RunConfig:
    return RunConfig(
        model="minilm",
        output=str(folder / entry.title.replace(" ", "-")),
        task=TaskSection(name="cola", data=str(folder / _DATA), max_length=LONGEST),
        adapter=entry.adapter,
        training=TrainingSection(
            precision=Precision.float32,  # the same figures on every machine
            learning_rate=entry.learning_rate,
            head_learning_rate=HEAD_RATE,
            epochs=EPOCHS,
            batch_size=BATCH,
            seed=seed,
        ),
    )


def _result(entry: Entry, record: dict[str, Any]) -> DemoResult:
    from ..tuner import SubspaceConfig

    config = SubspaceConfig(method=entry.adapter.method, formula=entry.adapter.formula)
    return DemoResult(
        title=entry.title,
        formula=str(config.resolved.formula),
        trainable=record["parameters"]["adapter"],
        per_mille=record["parameters"]["per_mille"],
        accuracy=record["final"]["accuracy"],
        majority=record["baseline"]["accuracy"],
        seconds=record["seconds"],
    )
