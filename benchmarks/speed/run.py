"""Training steps against the frozen floor and peft: shapes x number formats, with the limits that we set ourselves.

    python benchmarks/speed/run.py                  # all nine tables; an hour on two cores that do nothing else
    python benchmarks/speed/run.py --settings a-float32 b-autocast --rounds 10
    python benchmarks/speed/run.py --table          # only writes results.md from the tables that are there

Each table is one call of `subspace bench` and one JSON file in the results folder; tables of an earlier day stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from subspace_tuning.experiments.folder import written

HERE = Path(__file__).resolve().parent
METHODS = (
    "ssl ssb ia3 bitfit lora trilora flora moslora adalora spectral parallel_adapter pissa milora dora lora_dash "
    "sam_parser svdiff liera pafi"
).split()
SETTINGS = [f"{shape}-{precision}" for precision in ("float32", "autocast", "bfloat16") for shape in "abc"]

# The most that a step may take in frozen floors, on shapes a and b in float32. None: as much as full fine-tuning.
LIMITS: dict[str, tuple[float, float] | None] = {
    **dict.fromkeys(("ssl", "ssb", "ia3", "bitfit"), (1.05, 1.03)),
    "lora": (1.12, 1.08),
    **dict.fromkeys(("trilora", "flora", "moslora", "adalora", "spectral", "parallel_adapter"), (1.15, 1.10)),
    **dict.fromkeys(("pissa", "milora"), (1.20, 1.13)),
    "dora": (1.18, 1.12),
    "lora_dash": (1.20, 1.14),
    **dict.fromkeys(("sam_parser", "svdiff", "liera", "pafi"), None),
}
ALLOWANCE = {"float32": 0.0, "autocast": 0.02, "bfloat16": 0.05}


def limit(method: str, shape: str, precision: str, full: float) -> float | None:
    """The limit of a method, None where none is set (shape c)."""
    if shape == "c" or method not in LIMITS:
        return None
    both = LIMITS[method]
    return full if both is None else both["ab".index(shape)] + ALLOWANCE[precision]


def lines(setting: str, found: Mapping[str, Any]) -> Iterator[str]:
    """One table as Markdown."""
    shape, precision = setting.split("-")[:2]
    rows = found["rows"]
    full = next(row["to_floor"][0] for row in rows if row["source"] == "full")
    yield f"## {found['shape']}, {precision}"
    yield ""
    yield f"{found['date']}, {found['rounds']} rounds, {found['machine']['threads']} threads; floor " + (
        f"{rows[0]['seconds'] * 1e3:.0f} ms."
    )
    yield ""
    yield "| arm | to the floor (95 %) | limit | | to peft | kept for backward, MiB | GFLOP | build, s |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        median, low, high = row["to_floor"]
        most = limit(row["arm"], shape, precision, full) if row["source"] == "ours" else None
        met = "" if most is None else "met" if median <= most else "within noise" if low <= most else "missed"
        shown = "" if most is None else f"{most:.2f}"
        peft = "" if row["to_peft"] is None else f"{row['to_peft'][0]:.2f}"
        yield (
            f"| {row['arm']} | {median:.3f} ({low:.2f} - {high:.2f}) | {shown} | {met} | {peft} "
            f"| {row['saved_mib']:.1f} | {row['gflops']:.1f} | {row['build_seconds']:.2f} |"
        )
    yield ""


def main() -> None:
    """Reads the command line, measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--run", default="1", help="a name for this run, so that several stand side by side")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for setting in [] if options.table else options.settings:
        shape, precision = setting.split("-")
        path = options.results / f"{setting}-{options.run}.json"
        words = ["bench", "--shape", shape, "--precision", precision, "--rounds", str(options.rounds)]
        # A Llama block has no biases for BitFit.
        words += [word for name in options.methods if (name, shape) != ("bitfit", "c") for word in ("--method", name)]
        code = "from subspace_tuning.cli import main; main()"
        subprocess.run([sys.executable, "-c", code, *words, "--output", path, "--overwrite"], check=True)
    page = [
        "# Training steps against the frozen floor",
        "",
        "Written by `run.py`; README.md says what is measured.",
        "",
    ]
    last: Mapping[str, Any] = {}
    for path in sorted(options.results.glob("*-*.json")):
        last = json.loads(path.read_text(encoding="utf-8"))
        page += lines(path.stem, last)
    if last:
        page += [
            f"Machine: {last['machine']['cpu']}, {last['machine']['cores']} cores.",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in last["versions"].items()) + ".",
            "",
        ]
    with written(options.results / "results.md") as file:
        file.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
