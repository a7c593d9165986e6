"""Detects changes of a frozen weight, without reading all of it in every forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..compat import functorch_is_active
from .seen import sampled
from .weights import is_partitioned

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**17
_RESTLESS = 2  # moves of a tensor with unchanged content before its moves are ignored


class Watch:
    """The recorded state of a weight.

    * A stamp: storage, offset and version. Comparing it is free, but it misses changes through ``.data``.
    * A sample of the entries. Comparing it takes some microseconds on the CPU, and a synchronisation elsewhere.
    * A fingerprint of all bits, compared if the stamp has changed or the whole weight is read anyway.

    Sharded training moves a weight in every step without changing its content; after a few such moves the stamp is
    ignored.
    """

    def __init__(self) -> None:
        self._fingerprint: int | None = None
        self._sample: bytes | None = None
        self._stamp: tuple[StorageWeakRef, int, int] | None = None  # weak, so that no other storage gets the address
        self._moves = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stamp": None}  # a copy has its own storage

    def remember(self, weight: Tensor) -> None:
        """Record the current state of the weight."""
        known = readable(weight)
        self._fingerprint = fingerprint(weight) if known else None
        self._note_place(weight if known else None)
        self._moves = 0

    def look_again(self) -> None:
        """Compare the content the next time, for example after a load."""
        self._stamp, self._moves = None, 0

    def moved(self, weight: Tensor, sample: bool = False) -> bool:
        """Return whether the weight may have changed; ``sample`` compares entries on any device, not only the CPU."""
        if not readable(weight):
            return False
        if self._stamp is None or self._sample is None or (self._moves < _RESTLESS and not self._in_place(weight)):
            return True
        return (sample or weight.device.type == "cpu") and sampled(weight) != self._sample

    def knows(self, weight: Tensor) -> bool:
        """Return whether the weight has the recorded content."""
        return self._fingerprint == fingerprint(weight)

    def changed(self, weight: Tensor) -> bool:
        """Return whether the weight has changed, and record its new content."""
        if not self.knows(weight):
            self.remember(weight)
            return True
        self._moves += self._stamp is not None and not self._in_place(weight)
        self._note_place(weight)
        return False

    def _in_place(self, weight: Tensor) -> bool:
        assert self._stamp is not None
        reference, offset, version = self._stamp
        same = reference.cdata == weight.untyped_storage()._cdata and offset == weight.storage_offset()
        return same and version == _version(weight)

    def _note_place(self, weight: Tensor | None) -> None:
        self._stamp = self._sample = None
        if weight is not None:
            self._sample = sampled(weight)
            self._stamp = StorageWeakRef(weight.untyped_storage()), int(weight.storage_offset()), _version(weight)


def readable(weight: Tensor) -> bool:
    """Return whether a weight's content can be read: it is not a shard, not on the meta device, and not traced."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and not is_partitioned(weight)
        and weight.device.type != "meta"
        and not functorch_is_active()
    )


def fingerprint(weight: Tensor) -> int:
    """Return a number that depends on every bit of a weight and its position, but not on the device."""
    flat = weight.detach().contiguous().flatten()
    whole = len(flat) * flat.element_size() % 8 == 0 and flat.storage_offset() * flat.element_size() % 8 == 0
    bits = flat.view(torch.int64 if whole else _BITS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    place = torch.arange(min(_CHUNK, len(bits)), device=weight.device) * 0x9E3779B97F4A7C1  # as splitmix64 does
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK]
        mixed = (part ^ (place[: len(part)] + start)) * 0xBF58476D1CE4E5B
        mixed ^= mixed >> 29
        total += (mixed * 0x94D049BB133111E).sum()
    return int(total)


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version
