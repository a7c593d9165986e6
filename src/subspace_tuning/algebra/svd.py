"""Singular value decompositions of frozen weights: exact, leading part, trailing part, cached on disk.

Everything is computed in float64. In float32 the vectors depend visibly on the number of threads, and an adapter that
is trained in one basis must find the same one again when it is loaded. For the same reason the signs are fixed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import SubspaceError

log = logging.getLogger(__name__)

Part = Literal["top", "bottom"]
_OVERSAMPLING = 8
_POWERS = 8
_VERSION = 1  # of the algorithms below; part of the cache's key


class Spectrum(NamedTuple):
    """W = U @ diag(S) @ V.T, or r of its singular triples: U is n x k, S has k numbers in falling order, V is m x k."""

    U: Tensor
    S: Tensor
    V: Tensor


def svd(weight: Tensor, rank: int | None = None, part: Part = "top", cache: bool = True) -> Spectrum:
    """Decompose a weight.

    Args:
        weight: W, n x m, any floating type.
        rank: how many singular triples; None for all min(n, m).
        part: the largest or the smallest ones.
        cache: look the result up on disk, and keep it there (see :func:`cache_folder`).

    Returns:
        U, S, V in float64 for a float64 weight, else in float32, on the weight's device. The columns of U and V are
        orthonormal. A short leading part comes from a randomised block Krylov space (Musco and Musco, arXiv
        1504.05477), a trailing part from the eigenvectors of the smaller Gram matrix; all else is LAPACK's exact
        decomposition.

    Raises:
        SubspaceError: the weight has entries that are not finite, or the rank is above min(n, m).
    """
    k = min(weight.shape)
    if rank is not None and not 1 <= rank <= k:
        raise SubspaceError(f"rank {rank} is not between 1 and min(n, m) = {k}")
    if not torch.isfinite(weight).all():
        raise SubspaceError("the weight has entries that are not finite")
    weight = weight.detach()
    result = _cached(weight, rank, part, _compute) if cache else _compute(weight, rank, part)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Spectrum(*(tensor.to(device=weight.device, dtype=dtype).contiguous() for tensor in result))


def _compute(weight: Tensor, rank: int | None, part: Part) -> Spectrum:
    matrix = weight.double()
    if rank is not None and part == "top" and (rank + _OVERSAMPLING) * (_POWERS + 1) < min(matrix.shape):
        return _fix_signs(_leading(matrix, rank))
    if rank is not None and part == "bottom":
        return _fix_signs(_trailing(matrix, rank))
    U, S, right = torch.linalg.svd(matrix, full_matrices=False)
    return _fix_signs(Spectrum(U[:, :rank], S[:rank], right.T[:, :rank]))


def _leading(matrix: Tensor, rank: int) -> Spectrum:
    """Find the leading triples in the Krylov space of a random block: flat spectra need its powers all together."""
    generator = torch.Generator().manual_seed(0)  # the person's own random numbers stay as they are
    block = torch.randn(matrix.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=matrix.dtype)
    block = torch.linalg.qr(matrix @ block.to(matrix.device))[0]
    blocks = [block]
    for _ in range(_POWERS):
        block = torch.linalg.qr(matrix @ (matrix.T @ block))[0]
        blocks.append(block)
    space = torch.linalg.qr(torch.cat(blocks, dim=1))[0]
    U, S, right = torch.linalg.svd(space.T @ matrix, full_matrices=False)
    return Spectrum((space @ U)[:, :rank], S[:rank], right.T[:, :rank])


def _trailing(matrix: Tensor, rank: int) -> Spectrum:
    """Take the eigenvectors of the Gram matrix; the other side is W times them, made orthonormal again."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    right = vectors[:, :rank]
    # The small singular values carry little accuracy through the squares, so the r directions are decomposed anew.
    left, values, turn = torch.linalg.svd(tall @ right, full_matrices=False)
    right = right @ turn.T
    return Spectrum(right, values, left) if wide else Spectrum(left, values, right)


def _fix_signs(spectrum: Spectrum) -> Spectrum:
    """Make the largest entry of every column of U positive."""
    U, S, V = spectrum
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return Spectrum(U * signs, S, V * signs)


# Cache


def cache_folder() -> Path | None:
    """Return the cache's folder: ``$SUBSPACE_CACHE`` if set (empty: no cache), else the user's cache folder."""
    chosen = os.environ.get("SUBSPACE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(platformdirs.user_cache_dir("subspace-tuning"))


def cache_limit() -> int:
    """Return the cache's size in bytes, ``$SUBSPACE_CACHE_BYTES`` or 4 GB; the files used least recently go first."""
    return int(os.environ.get("SUBSPACE_CACHE_BYTES", 4 * 10**9))


def _cached(
    weight: Tensor, rank: int | None, part: Part, compute: Callable[[Tensor, int | None, Part], Spectrum]
) -> Spectrum:
    folder = cache_folder()
    if folder is None:
        return compute(weight, rank, part)
    path = folder / f"{_key(weight, rank, part)}.safetensors"
    try:
        stored = load_file(path)
        os.utime(path)
        # Copies: what lies in a file is not aligned in memory, and products then differ in the last bit.
        return Spectrum(*(stored[name].clone() for name in Spectrum._fields))
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or cut short by a full disk: compute it
    result = compute(weight, rank, part)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    try:
        _store(path, {name: tensor.cpu().to(dtype).contiguous() for name, tensor in result._asdict().items()})
    except OSError as error:
        log.warning("the cache %s cannot be written (%s); the decomposition is not kept", folder, error)
    return result


def _key(weight: Tensor, rank: int | None, part: Part) -> str:
    data = weight.cpu().contiguous()
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{_VERSION} {tuple(data.shape)} {data.dtype} {rank} {part if rank else 'all'}".encode())
    digest.update(data.view(torch.uint8).numpy().data if data.numel() else b"")
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
        with contextlib.suppress(FileNotFoundError):  # another process shrinks it, too
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= cache_limit():
            break
        path.unlink(missing_ok=True)
        total -= size
