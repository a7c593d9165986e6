"""Detects whether a tensor has changed, without reading all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_SMALL, _SAMPLES = 4096, 256  # a tensor of up to _SMALL entries is compared whole, a larger one at _SAMPLES entries


class Seen(NamedTuple):
    """The state of a tensor: the object, its address, its version, and a view of some entries with their bits.

    torch counts the changes of a tensor in its version, except those through ``.data``. On the CPU entries are
    compared, too; on other devices that would mean a synchronisation.
    """

    tensor: Tensor
    pointer: int
    version: int
    entries: np.ndarray[Any, Any] | None
    bits: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Seen | None:
        """Return the current state of a tensor, or None if its changes cannot be detected."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_inference():
            return None
        if tensor.device.type != "cpu":
            return cls(tensor, tensor.data_ptr(), tensor._version, None, b"")
        view = sample(tensor)
        if view.size and view.__array_interface__["data"][0] != tensor.data_ptr():  # a copy, since it is not contiguous
            return None
        return cls(tensor, tensor.data_ptr(), tensor._version, view, view.tobytes())


def unchanged(groups: Iterable[Iterable[Tensor | None]], seen: list[Seen]) -> bool:
    """Return whether these are the tensors last seen, all unchanged."""
    index, count = 0, len(seen)
    for tensors in groups:
        for tensor in tensors:
            if tensor is None:
                continue
            if index == count:
                return False
            known, pointer, version, view, bits = seen[index]
            # The view is only read if the address is the same: the memory may have been freed.
            if tensor is not known or tensor._version != version or tensor.data_ptr() != pointer:
                return False
            if view is not None and view.tobytes() != bits:
                return False
            index += 1
    return index == count


def sample(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return some entries of a tensor on the CPU, or all of a small one; a view if it is contiguous."""
    own = tensor.detach()
    if own.dtype is torch.bfloat16:  # unknown to NumPy
        own = own.view(torch.int16)
    # Through DLPack, since torch fixes the size of a storage once `numpy` has shared it, and FSDP frees its own.
    flat: np.ndarray[Any, Any] = np.from_dlpack(own).ravel("K")  # in memory order
    return flat[:: _step(flat.size)]


def sampled(tensor: Tensor) -> bytes:
    """Return the bits of some entries of a tensor on any device."""
    if tensor.device.type != "cpu":
        flat = tensor.detach().flatten()
        tensor = flat[:: _step(flat.numel())].cpu()
    return sample(tensor).tobytes()


def _step(count: int) -> int:
    return 1 if count <= _SMALL else count // _SAMPLES
