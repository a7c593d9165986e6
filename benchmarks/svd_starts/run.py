"""The starts of pissa and milora on 24 matrices of 2048 x 2048, beside full singular value decompositions.

    python benchmarks/svd_starts/run.py               # some minutes on two cores

Writes results.json beside itself and prints the table; README.md says what is measured.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.files import write_json
from subspace_tuning.jobs.script import done, one_line_errors, parser
from subspace_tuning.jobs.units import measured
from subspace_tuning.provenance import provenance

HERE = Path(__file__).resolve().parent
METHODS = ("pissa", "milora")
RANK = 8


def random(size: int, generator: torch.Generator) -> Tensor:
    """Normal numbers: the largest singular values lie dense, which is the hardest case for pissa."""
    return torch.randn(size, size, generator=generator) / size**0.5


def pretrained(size: int, generator: torch.Generator) -> Tensor:
    """Normal numbers and an eighth of the directions with a power law over them, much as in a pretrained encoder."""
    count = size // 8
    left, right = (torch.linalg.qr(torch.randn(size, count, generator=generator))[0] for _ in range(2))
    return random(size, generator) + left * (8 * torch.arange(1, count + 1) ** -0.5) @ right.T


def power(size: int, generator: torch.Generator) -> Tensor:
    """A power law throughout: the smallest singular values lie dense, which is the hardest case for milora."""
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
    return left * torch.arange(1, size + 1) ** -0.7 @ right.T


SPECTRA: Mapping[str, Callable[[int, torch.Generator], Tensor]] = {
    function.__name__: function for function in (random, pretrained, power)
}


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def adapt(weights: list[Tensor], method: str) -> float:
    """The time that an adapter takes to be put on linear layers with these weights."""
    layers = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight)
        layers.append(layer)
    config = SubspaceConfig(method=method, r=RANK, target_modules=[str(index) for index in range(len(layers))])
    model = nn.Sequential(*layers)
    return seconds(lambda: get_peft_model(model, config))


def measure(spectrum: str, count: int, size: int) -> dict[str, Any]:
    """A row per method on weights of one spectrum."""
    generator = torch.Generator().manual_seed(0)
    weights = [SPECTRA[spectrum](size, generator) for _ in range(count)]
    full: dict[str, list[float]] = {"float32": [], "float64": []}
    rows: list[dict[str, Any]] = []

    def decompose(index: int) -> None:
        matrix = weights[index]
        full["float32"].append(seconds(lambda: torch.linalg.svd(matrix, full_matrices=False)))
        full["float64"].append(seconds(lambda: torch.linalg.svd(matrix.double(), full_matrices=False)))

    decompose(0)  # before, between and after: what else the machine does then meets both
    for index, method in enumerate(METHODS, start=1):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SUBSPACE_CACHE"] = folder
            rows.append(
                {
                    "spectrum": spectrum,
                    "method": method,
                    "first_seconds": adapt(weights, method),
                    "again_seconds": adapt(weights, method),
                }
            )
        decompose(min(index, count - 1))
    scaled = {name: min(times) * count for name, times in full.items()}
    for row in rows:
        row |= {"full_seconds": scaled, "full_samples": full}
        row |= {f"{run}_ratio": scaled["float32"] / row[f"{run}_seconds"] for run in ("first", "again")}
    return {"rows": rows}


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    host = found["machine"]
    lines = [
        f"{found['matrices']} matrices of {found['size']} x {found['size']}, r = {found['rank']}; {host['cpu']}, "
        f"{host['cores']} cores, {host['threads']} threads; torch {found['versions']['torch']}; {found['date']}. "
        "Seconds; full decompositions are the fastest of three, scaled.",
        "",
        "| spectrum | method | full, float32 | full, float64 | start | times faster | again, cached | times faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['spectrum']} | {row['method']} | {row['full_seconds']['float32']:.1f} "
        f"| {row['full_seconds']['float64']:.1f} | {row['first_seconds']:.2f} | {row['first_ratio']:.1f} "
        f"| {row['again_seconds']:.2f} | {row['again_ratio']:.0f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


@one_line_errors()
def main() -> None:
    """Reads the command line, measures, writes and prints."""
    words = parser(__doc__, HERE / "results.json")
    words.add_argument("--matrices", type=int, default=24)
    words.add_argument("--size", type=int, default=2048)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--spectra", nargs="+", choices=SPECTRA, default=list(SPECTRA))
    options = words.parse_args()
    torch.set_num_threads(options.threads)
    torch.linalg.svd(torch.randn(300, 300))  # the first call of a process loads things
    adapt([torch.randn(300, 300)], METHODS[0])
    job = {"matrices": options.matrices, "size": options.size, "rank": RANK}
    description, units = job | {"threads": options.threads}, {name: name for name in options.spectra}
    one = partial(measure, count=options.matrices, size=options.size)
    with measured(options.results, description, units, one, done) as parts:
        rows = [row for part in parts.values() for row in part["rows"]]
        found = {**job, "rows": rows, "load": os.getloadavg(), **provenance()}
        write_json(options.results, found)
    print(table(found))


if __name__ == "__main__":
    main()
