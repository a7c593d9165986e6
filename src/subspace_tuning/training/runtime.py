"""Process-wide settings of a run, restored at its end: threads, and the output of other libraries."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
from huggingface_hub.utils import logging as hub
from transformers.utils import logging as transformers

from ..errors import SubspaceError
from .sections import Device, Precision


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads, or with torch's default, during the body."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_cpu(device: Device) -> bool:
    """Return whether a run computes on the CPU."""
    return device is Device.cpu or not torch.accelerator.is_available()


def resolved(precision: Precision, device: Device) -> Precision:
    """Return the precision of products; `auto` is bfloat16 if the machine has instructions for it.

    Raises:
        SubspaceError: float16 is requested without an accelerator.
    """
    if precision is Precision.float16 and on_cpu(device):
        raise SubspaceError("training.precision is float16, which needs an accelerator: take bfloat16")
    if precision is not Precision.auto:
        return precision
    return Precision.bfloat16 if _has_bfloat16(device) else Precision.float32


def _has_bfloat16(device: Device) -> bool:
    if device is Device.auto and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public names for these; a release without them means float32.
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in known if supported is not None)


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Silence other libraries during the body, such as about a fresh head or the hub's retries.

    Args:
        bars: whether to show progress bars for the data; those for loading and saving weights are never shown.
    """
    before = transformers.get_verbosity(), hub.get_verbosity()
    weights, data = transformers.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    transformers.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not (bars and sys.stderr.isatty()):  # in a log, a line for each change of a bar
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # A checkpoint has all rows of embeddings that have grown; a result has the new ones alone.
            warnings.filterwarnings("ignore", "Setting `save_embedding_layers`", UserWarning)
            yield
    finally:
        transformers.set_verbosity(before[0])
        hub.set_verbosity(before[1])
        if weights:
            transformers.enable_progress_bar()  # type: ignore[no-untyped-call]
        if not data:
            datasets.enable_progress_bars()
