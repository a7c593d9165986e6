"""A batch in which each row has its own adapter, against the same batch with one adapter for all.

    python benchmarks/many_adapters/run.py    # a minute on one core that does nothing else

Every call of a round is made once, in turn; a figure is the median of the ratios within the rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.bench.measure import Ratio, interleaved
from subspace_tuning.files import write_json, write_text
from subspace_tuning.jobs.script import one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent
WIDTH, ROWS, RANK = 768, 100, 8
TOKENS = {"16 tokens": 16, "1 token": 1}
ARMS: dict[str, Callable[[], PeftConfig]] = {
    "ssb": lambda: SubspaceConfig(method="ssb", init_weights=False, target_modules=["0"]),
    "lora": lambda: SubspaceConfig(method="lora", r=RANK, init_weights=False, target_modules=["0"]),
    "dora": lambda: SubspaceConfig(method="dora", r=RANK, init_weights=False, target_modules=["0"]),
    "peft's lora": lambda: LoraConfig(r=RANK, init_lora_weights=False, target_modules=["0"]),
}
LIMITS = {"ssb": 1.5, "lora": 2.0}  # of one adapter's time, with 16 tokens per row
NAMES = ["default", *(f"number {index}" for index in range(1, ROWS))]


def adapted(config: Callable[[], PeftConfig]) -> Any:
    """A linear layer with an adapter for each row."""
    torch.manual_seed(0)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(WIDTH, WIDTH)), config())
    for name in NAMES[1:]:
        model.add_adapter(name, config())
    return model.eval()


@torch.no_grad()
def batch(tokens: int, rounds: int) -> dict[str, Any]:
    """Time one batch with one adapter and with as many as it has rows."""
    x, frozen = torch.randn(ROWS, tokens, WIDTH), nn.Linear(WIDTH, WIDTH)
    models = {arm: adapted(config) for arm, config in ARMS.items()}
    calls: dict[str, Callable[[], Any]] = {"frozen": partial(frozen, x)}
    for arm, model in models.items():
        calls[f"{arm}, one"] = partial(model, x)
        calls[f"{arm}, each its own"] = partial(model, x, adapter_names=NAMES)
    seconds = interleaved({name: torch.no_grad()(call) for name, call in calls.items()}, rounds)
    return {
        "tokens": tokens,
        "milliseconds": {name: 1e3 * min(own) for name, own in seconds.items()},
        "ratios": {arm: list(Ratio.of(seconds[f"{arm}, each its own"], seconds[f"{arm}, one"])) for arm in ARMS},
    }


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# A hundred adapters in one batch", "", "Written by `run.py`; README.md says what is measured.", ""]
    for one in found["batches"]:
        times = one["milliseconds"]
        lines += [
            f"{ROWS} rows, tokens per row: {one['tokens']}. The frozen layer takes {times['frozen']:.1f} ms.",
            "",
            "| adapter | one for all, ms | each row its own, ms | ratio (95 %) | limit |",
            "|---|---|---|---|---|",
        ]
        for arm, (median, low, high) in one["ratios"].items():
            limit = f"{LIMITS[arm]:.1f}" if arm in LIMITS and one["tokens"] == TOKENS["16 tokens"] else ""
            shown = f"{times[f'{arm}, one']:.1f} | {times[f'{arm}, each its own']:.1f}"
            lines.append(f"| {arm} | {shown} | {median:.2f} ({low:.2f} - {high:.2f}) | {limit} |")
        lines.append("")
    machine, versions = found["machine"], found["versions"]
    lines.append(
        f"{found['date']}; {machine['cpu']}, one thread, {found['rounds']} rounds, torch {versions['torch']}, "
        f"peft {versions['peft']}. Times are the least of the rounds."
    )
    return "\n".join([*lines, ""])


@one_line_errors()
def main() -> None:
    """Reads the command line, measures and writes the results."""
    words = parser(__doc__, HERE)
    words.add_argument("--rounds", type=int, default=30)
    options = words.parse_args()
    torch.set_num_threads(1)
    output, job = options.results / "results.json", {"rounds": options.rounds}
    with measured(output, job, TOKENS, partial(batch, rounds=options.rounds)) as found:
        results = {**provenance(), **job, "batches": list(found.values())}
        write_json(output, results)
    write_text(options.results / "results.md", page(results))


if __name__ == "__main__":
    main()
