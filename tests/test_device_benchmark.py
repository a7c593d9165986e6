"""`benchmarks/device/run.py` in small on the CPU, so that it runs on the day when there is an accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "device" / "run.py"


def test_every_part_runs_in_small(tmp_path: Path) -> None:
    results = tmp_path / "small.json"
    command = [sys.executable, str(SCRIPT), "--small", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text(encoding="utf-8"))
    assert {"layers", "training", "decoding", "compiling", "starts"} <= set(found)
    for rows in found["compiling"].values():
        assert rows["ours lora"]["graphs"] == 1 and rows["ours lora"]["breaks"] == 0
        assert rows["ours lora"]["operations"] <= rows["peft lora"]["operations"]
    for rows in found["starts"].values():
        assert all(row["start off by"] < 1e-5 for row in rows.values())
