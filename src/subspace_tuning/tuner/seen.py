"""Telling without reading all of it whether a tensor has changed since it was last seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_SMALL, _SAMPLES = 4096, 256  # a tensor of up to _SMALL entries is compared whole, a larger one at _SAMPLES entries


class Seen(NamedTuple):
    """A tensor as it was: the object, where its numbers are, its version, and a view of some entries with their bits.

    torch counts the changes of a tensor in its version, but not those through ``.data``. On the CPU entries are
    compared, too; elsewhere that would be a synchronisation.
    """

    tensor: Tensor
    pointer: int
    version: int
    entries: np.ndarray[Any, Any] | None
    bits: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Seen | None:
        """Return a tensor as it is now, None if nothing tells of its changes."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_inference():
            return None
        if tensor.device.type != "cpu":
            return cls(tensor, tensor.data_ptr(), tensor._version, None, b"")
        view = sample(tensor)
        if view.size and view.__array_interface__["data"][0] != tensor.data_ptr():  # a copy, as it has gaps in memory
            return None
        return cls(tensor, tensor.data_ptr(), tensor._version, view, view.tobytes())


def unchanged(groups: Iterable[Iterable[Tensor | None]], seen: list[Seen]) -> bool:
    """Return whether these are the tensors that were seen, none of them changed."""
    index, count = 0, len(seen)
    for tensors in groups:
        for tensor in tensors:
            if tensor is None:
                continue
            if index == count:
                return False
            known, pointer, version, view, bits = seen[index]
            # The view is read only where the numbers still are where they were: their memory may have been freed.
            if tensor is not known or tensor._version != version or tensor.data_ptr() != pointer:
                return False
            if view is not None and view.tobytes() != bits:
                return False
            index += 1
    return index == count


def sample(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return some entries of a tensor on the CPU, or all if they are few; a view, if it has no gaps in memory."""
    own = tensor.detach()
    if own.dtype is torch.bfloat16:  # of which NumPy knows nothing
        own = own.view(torch.int16)
    flat: np.ndarray[Any, Any] = own.numpy().ravel("K")  # in the order of memory
    return flat[:: _step(flat.size)]


def sampled(tensor: Tensor) -> bytes:
    """Return the bits of some entries of a tensor on any device."""
    if tensor.device.type != "cpu":
        flat = tensor.detach().flatten()
        tensor = flat[:: _step(flat.numel())].cpu()
    return sample(tensor).tobytes()


def _step(count: int) -> int:
    return 1 if count <= _SMALL else count // _SAMPLES
