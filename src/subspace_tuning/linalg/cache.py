"""Decompositions on disk, keyed by a hash of the weight's bytes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import SubspaceError
from .krylov import Part, Spectrum

log = logging.getLogger(__name__)

_VERSION = 2  # of the algorithms; part of the cache's key
_PIECE = 2**21  # bytes hashed at a time
LARGEST_SHARE = 0.02
"""The largest share of the cache's limit for one decomposition. Otherwise those of a large model's layers would evict
each other before any of them is read again: with 4 GB, the full one of a 4096 x 4096 matrix is not kept."""


def cache_folder() -> Path | None:
    """Return the cache's folder: ``$SUBSPACE_CACHE`` if set (empty: no cache), else the user's cache folder."""
    chosen = os.environ.get("SUBSPACE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(platformdirs.user_cache_dir("subspace-tuning"))


def cache_limit() -> int:
    """Return the cache's limit in bytes, ``$SUBSPACE_CACHE_BYTES`` or 4 GB; least recently used files go first.

    Raises:
        SubspaceError: the variable is not a number of bytes.
    """
    given = os.environ.get("SUBSPACE_CACHE_BYTES", "").strip() or "4000000000"
    if not given.isdecimal():
        raise SubspaceError(f"SUBSPACE_CACHE_BYTES={given!r} is not a number of bytes; 4000000000, for example, is one")
    return int(given)


def cached(
    weight: Tensor, rank: int | None, part: Part, compute: Callable[[Tensor, int | None, Part], Spectrum]
) -> Spectrum:
    folder = cache_folder()
    if folder is None:
        return compute(weight, rank, part)
    limit = cache_limit()  # an invalid value is refused before anything is computed
    path = folder / f"{_key(weight, rank, part)}.safetensors"
    try:
        stored = load_file(path)
        os.utime(path)
        # Copy: tensors mapped from a file are not aligned in memory, and products would differ in the last bit.
        return Spectrum(*(stored[name].clone() for name in Spectrum._fields))
    except (OSError, SafetensorError, KeyError):
        pass  # missing, or truncated by a full disk: compute it
    result = compute(weight, rank, part)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if sum(tensor.numel() for tensor in result) * dtype.itemsize > LARGEST_SHARE * limit:
        return result
    try:
        _store(path, {name: tensor.cpu().to(dtype).contiguous() for name, tensor in result._asdict().items()})
    except OSError as error:
        log.warning("the cache %s cannot be written (%s); the decomposition is not kept", folder, error)
    return result


def _key(weight: Tensor, rank: int | None, part: Part) -> str:
    data = weight.cpu()
    # A linear layer's weight arrives transposed: hashed in memory order, it needs no copy.
    turned = not data.is_contiguous() and data.T.is_contiguous()
    data = data.T if turned else data.contiguous()
    order = "columns" if turned else "rows"
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{_VERSION} {tuple(data.shape)} {order} {data.dtype} {rank} {part if rank else 'all'}".encode())
    if data.numel():
        # Flat first: the strides of sides of length 1 may be anything.
        content = data.reshape(-1).view(torch.uint8).numpy().data
        pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
        # Hashing dominates the cost of a cache hit; it releases the GIL.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for piece in pool.map(lambda piece: hashlib.blake2b(piece, digest_size=20).digest(), pieces):
                digest.update(piece)
    return digest.hexdigest()


def _store(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _shrink(path.parent)


def _shrink(folder: Path) -> None:
    files = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another process is shrinking it, too
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= cache_limit():
            break
        path.unlink(missing_ok=True)
        total -= size
