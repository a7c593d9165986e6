"""Where a result comes from: versions, the machine, the time, and the memory that was used."""

from __future__ import annotations

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
    """Python's version and those of the packages that decide a result; "unknown" for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def machine() -> dict[str, Any]:
    """The processor, its cores as this process sees them, the threads torch uses, and the accelerator if any."""
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


CIRCUMSTANCES = ("date", "machine", "versions")
"""The keys of :func:`circumstances`."""


def circumstances() -> dict[str, Any]:
    """When, on what machine and with which versions something is measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def peak_memory() -> float:
    """The most memory that this process has held so far, in MiB."""
    try:
        import resource
    except ImportError:  # only POSIX systems have it
        used = psutil.Process().memory_info()
        return float(getattr(used, "peak_wset", used.rss)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
