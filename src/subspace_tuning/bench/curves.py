"""How the cost of a step grows with rows, width and rank, and the cost of many adapters in one model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import peft

from ..tuner import SubspaceConfig
from .arms import FLOOR, arms, build
from .choices import BenchPrecision, Curve
from .device import seconds
from .measure import Ratio, interleaved
from .settings import ModelShape, bert_block, freeze

CURVES = {
    Curve.rows: (128, 512, 2048, 8192, 16384),
    Curve.width: (256, 512, 1024, 2048, 4096),
    Curve.rank: (1, 4, 16, 64, 256),
    Curve.adapters: (1, 2, 50, 100, 200),
}
TOKENS = 64
WIDTH = 768  # of the model whose rows or rank vary


def growth(
    curve: Curve,
    value: int,
    names: Sequence[str],
    precision: BenchPrecision,
    rounds: int,
    on_progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return a curve's points at one value: each arm's median seconds per step, also in units of the frozen floor."""
    shape = _shape(curve, value)
    base = shape.model(precision)
    chosen = [arm for arm in arms(names, value if curve is Curve.rank else 8) if arm.source != "full"]
    steps = {str(arm): build(arm, base, shape, precision).step for arm in chosen}
    taken = interleaved(steps, rounds, on_progress)
    return [
        {
            "curve": curve.value,
            "value": value,
            "arm": name,
            "seconds": statistics.median(own),
            "to_floor": list(Ratio.of(own, taken[str(FLOOR)])),
        }
        for name, own in taken.items()
    ]


def _shape(curve: Curve, value: int) -> ModelShape:
    if curve is Curve.rows:
        return bert_block(WIDTH, batch=value // TOKENS, tokens=TOKENS)
    return bert_block(value if curve is Curve.width else WIDTH, tokens=TOKENS)


def many_adapters(
    name: str, repeats: int = 5, on_progress: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Yield the seconds for a step and for adding, switching to and deleting an adapter, among many adapters."""
    shape = bert_block(384, layers=6)
    base = shape.model()
    freeze(base)
    config = SubspaceConfig(method=name, r=8)
    model: Any = peft.get_peft_model(base, config, adapter_name="a1")
    inputs = shape.inputs()
    loaded = 1
    for count in CURVES[Curve.adapters]:
        while loaded < count:
            loaded += 1
            model.add_adapter(f"a{loaded}", config)
            on_progress()
        acts: dict[str, list[float]] = {"add": [], "switch": [], "delete": [], "step": []}
        for _ in range(repeats):
            acts["add"].append(seconds(lambda: model.add_adapter("last", config)))
            acts["switch"].append(seconds(lambda: model.set_adapter("last")))
            acts["step"].append(seconds(lambda: model(**inputs).loss.backward()))
            model.set_adapter("a1")
            acts["delete"].append(seconds(lambda: model.delete_adapter("last")))
        for act, taken in acts.items():
            yield {
                "curve": Curve.adapters.value,
                "value": count,
                "arm": f"{name}: {act}",
                "seconds": statistics.median(taken),
            }
