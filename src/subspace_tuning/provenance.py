"""The provenance of a result: versions, machine, time, and memory used."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("subspace-tuning", "torch", "transformers", "peft", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Return the versions of Python and of packages that affect a result; "unknown" for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def machine() -> dict[str, Any]:
    """Return the processor, the cores available to this process, torch's number of threads, and any accelerator."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


KEYS = ("date", "machine", "versions")
"""The keys of :func:`provenance`."""


def provenance() -> dict[str, Any]:
    """Return the date, the machine and the versions of a measurement."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def reset_peak_memory() -> None:
    """Let ``peak_memory`` begin anew, where the system can: on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak resident set size


def peak_memory() -> float:
    """Return the peak memory of this process so far, in MiB."""
    try:
        import resource
    except ImportError:  # only POSIX systems have it
        used = psutil.Process().memory_info()
        return float(getattr(used, "peak_wset", used.rss)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
