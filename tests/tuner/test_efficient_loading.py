"""accelerate's ``cpu_ram_efficient_loading``: the first process alone has the weights when an adapter is added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTION = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


@pytest.mark.slow
def test_every_process_holds_what_the_first_holds() -> None:
    script = Path(__file__).with_name("efficient_loading.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=os.environ | OPTION, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *found, refusal = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3 and all(len(case) > 20 for case in found)
    assert all(differing == [] for case in found for differing in case.values()), found
    assert "FSDP_CPU_RAM_EFFICIENT_LOADING" in refusal and "calibrate with that option off" in refusal
