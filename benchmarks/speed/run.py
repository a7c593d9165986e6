"""Training steps against the frozen floor and peft: shapes x number formats, with the limits that we set ourselves.

    python benchmarks/speed/run.py                  # all tables; an hour and a half on two cores that do nothing else
    python benchmarks/speed/run.py --run 3 --settings a-float32 b-autocast --rounds 10     # beside runs 1 and 2
    python benchmarks/speed/run.py --table          # only writes results.md from the tables that are there

Each table is one call of `subspace bench` and one JSON file in the results folder; tables that are there stay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from subspace_tuning.files import write_text
from subspace_tuning.jobs.script import grid, grid_parser, one_line_errors
from subspace_tuning.jobs.units import kept

HERE = Path(__file__).resolve().parent
METHODS = (
    "ssl ssb ia3 bitfit lora trilora flora moslora adalora spectral parallel_adapter pissa milora dora lora_dash "
    "sam_parser svdiff liera pafi"
).split()
FEW = ("ssb", "lora", "dora")
TABLES = [f"{shape}-{precision}" for precision in ("float32", "autocast", "bfloat16") for shape in "abc"]
# What is measured besides: its name, and the words for `subspace bench`.
OTHERS = {
    "memory": ["--memory", "--rounds", "2"],
    "compiled-float32": ["--compile"],
    "compiled-autocast": ["--compile", "--precision", "autocast"],
    **{f"curve-{curve}": ["--curve", curve] for curve in ("rows", "width", "rank", "adapters")},
}

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


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table of arms."""
    shape, precision, rows = found["shape"][0], found["precision"], found["rows"]
    full = next(row["to_floor"][0] for row in rows if row["source"] == "full")
    yield f"Floor {rows[0]['seconds'] * 1e3:.0f} ms."
    yield ""
    peak = rows[0]["peak_mib"] is not None
    yield "| arm | to the floor (95 %) | limit | | to peft | kept for backward, MiB | GFLOP | build, s |" + (
        " peak, MiB |" * peak
    )
    yield "|---|---|---|---|---|---|---|---|" + "---|" * peak
    for row in rows:
        median, low, high = row["to_floor"]
        most = limit(row["arm"], shape, precision, full) if row["source"] == "ours" else None
        met = "" if most is None else "met" if median <= most else "within noise" if low <= most else "missed"
        shown = "" if most is None else f"{most:.2f}"
        peft = "" if row["to_peft"] is None else f"{row['to_peft'][0]:.2f}"
        yield (
            f"| {row['arm']} | {median:.3f} ({low:.2f} - {high:.2f}) | {shown} | {met} | {peft} "
            f"| {row['saved_mib']:.1f} | {row['gflops']:.1f} | {row['build_seconds']:.2f} |"
        ) + (f" {row['peak_mib']:.0f} |" if peak else "")
    yield ""


def curve(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a growth curve: milliseconds, and how many frozen floors they are."""
    points = {(point["arm"], point["value"]): point for point in found["points"]}
    values = list(dict.fromkeys(point["value"] for point in found["points"]))
    yield ""
    yield "| ms (frozen floors) | " + " | ".join(f"{value:,}" for value in values) + " |"
    yield "|---" * (1 + len(values)) + "|"
    for arm in dict.fromkeys(point["arm"] for point in found["points"]):
        own = [points[arm, value] for value in values]
        shown = [
            f"{point['seconds'] * 1e3:.1f}" + (f" ({point['to_floor'][0]:.2f})" if "to_floor" in point else "")
            for point in own
        ]
        yield f"| {arm} | " + " | ".join(shown) + " |"
    yield ""


def lines(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """One file of figures as Markdown."""
    yield f"## {found.get('curve') or found['shape']}, {found['precision']} ({name})"
    yield ""
    yield f"{found['date']}, {found['rounds']} rounds, {found['machine']['threads']} threads."
    yield from curve(found) if "curve" in found else table(found)


def overview(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """All runs of all tables in one: medians, run by run, and the limits."""
    yield "## Frozen floors at a glance"
    yield ""
    yield "Medians of the runs in their order, and the limit. Those in bold are above it, intervals aside."
    yield ""
    settings = [name for name in TABLES if any(key.rsplit("-", 1)[0] == name for key in tables)]
    yield "| method | " + " | ".join(settings) + " |"
    yield "|---" * (1 + len(settings)) + "|"
    for method in METHODS:
        cells = []
        for setting in settings:
            shape, precision = setting.split("-")
            shown, most = [], None
            for found in (tables[key] for key in sorted(tables) if key.rsplit("-", 1)[0] == setting):
                ratios = {(row["source"], row["arm"]): row["to_floor"][0] for row in found["rows"]}
                most = limit(method, shape, precision, ratios["full", "full fine-tuning"])
                own = ratios.get(("ours", method))
                if own is not None:
                    shown.append(
                        f"**{own:.2f}**" if most is not None and round(own, 2) > round(most, 2) else f"{own:.2f}"
                    )
            cells.append(", ".join(shown) + (f" ({most:.2f})" if most is not None and shown else ""))
        yield f"| {method} | " + " | ".join(cells) + " |"
    yield ""


def words(name: str, methods: Sequence[str], rounds: int) -> list[str]:
    """What to tell `subspace bench` for one of the tables or curves."""
    if name in OTHERS:
        chosen, said = FEW, ["--rounds", str(rounds), *OTHERS[name]]
    else:
        shape, precision = name.split("-")
        # A Llama block has no biases for BitFit.
        chosen = tuple(method for method in methods if (method, shape) != ("bitfit", "c"))
        said = ["--shape", shape, "--precision", precision, "--rounds", str(rounds)]
    return [*said, *(word for method in chosen for word in ("--method", method))]


def measure(said: list[str]) -> dict[str, Any]:
    """One table or curve, by `subspace bench` in a process of its own."""
    code = "from subspace_cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        subprocess.run([sys.executable, "-c", code, "bench", *said, "--output", str(output)], check=True)
        found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def pages(results: Path) -> None:
    """Writes the tables of all files that are there."""
    known = kept(results, [path.stem for path in sorted(results.glob("*-*.json"))])
    page = [
        "# Training steps against the frozen floor",
        "",
        "Written by `run.py`; README.md says what is measured.",
        "",
    ]
    page += overview(known)
    for name, found in known.items():
        page += lines(name, found)
    if known:
        last = known[max(known)]
        page += [
            f"Machine: {last['machine']['cpu']}, {last['machine']['cores']} cores.",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in last["versions"].items()) + ".",
            "",
        ]
    write_text(results / "results.md", "\n".join(page))


@one_line_errors()
def main() -> None:
    """Reads the command line, measures and writes the tables."""
    asked = grid_parser(__doc__, HERE / "results")
    everything = [*TABLES, *OTHERS]
    asked.add_argument("--settings", nargs="+", choices=everything, default=everything)
    asked.add_argument("--methods", nargs="+", default=METHODS, help="those of the tables")
    asked.add_argument("--rounds", type=int, default=20)
    asked.add_argument("--run", default="1", help="a name for this run, so that several stand side by side")
    options = asked.parse_args()
    units = {f"{name}-{options.run}": words(name, options.methods, options.rounds) for name in options.settings}
    grid(options, {"methods": options.methods, "few": FEW}, units, measure, pages)


if __name__ == "__main__":
    main()
