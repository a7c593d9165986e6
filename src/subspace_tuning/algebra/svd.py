"""Singular value decompositions of frozen weights: exact, leading part, trailing part, cached on disk.

Everything is computed in float64. In float32 the vectors depend visibly on the number of threads, and an adapter that
is trained in one basis must find the same one again when it is loaded. For the same reason the signs are fixed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
_FEW = 16  # r triples are few if min(n, m) holds so many blocks of them and the oversampling
_STEPS = 40  # about where another factorisation costs as much
_INVERSE_STEPS = 12
_SHIFTED_STEPS = 20
_FIRST_CHECK = 4  # after so many steps
_TOLERANCE = 1e-6  # of residuals: of W, and of an inverse, whose errors W enlarges
_INVERSE_TOLERANCE = 1e-9
_ROUNDING = 1e-13
_HUGE = 1e60  # beyond, and below its inverse, powers of the entries may not be numbers
_PANEL = 512
_PIECE = 2**21  # bytes that are hashed in one go
_VERSION = 2  # of the algorithms below; part of the cache's key


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
        orthonormal. A few triples of a large matrix come from a randomised block Krylov space of it (Musco and
        Musco, arXiv 1504.05477), of its inverse or of a shifted inverse of its Gram matrix, if their residuals are
        below a millionth of the largest singular value; all else is LAPACK's exact decomposition.

    Raises:
        SubspaceError: the weight has entries that are not finite, or the rank is above min(n, m).
    """
    k = min(weight.shape)
    if rank is not None and not 1 <= rank <= k:
        raise SubspaceError(f"rank {rank} is not between 1 and min(n, m) = {k}")
    weight = weight.detach()
    result = _cached(weight, rank, part, _compute) if cache else _compute(weight, rank, part)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Spectrum(*(tensor.to(dtype).to(weight.device).contiguous() for tensor in result))


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on its device, or on the CPU where the device has no such format (Apple's MPS)."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _compute(weight: Tensor, rank: int | None, part: Part) -> Spectrum:
    matrix = in_float64(weight)
    size = float(torch.linalg.matrix_norm(matrix))
    # A finite norm is quicker than a look at every entry; that of finite entries may still overflow.
    if not (math.isfinite(size) or torch.isfinite(matrix).all()):
        raise SubspaceError("the weight has entries that are not finite")
    k = min(matrix.shape)
    if rank is not None and _FEW * (rank + _OVERSAMPLING) <= k and 1 / _HUGE < size < _HUGE:
        wide = matrix.shape[0] < matrix.shape[1]
        found = _partial(matrix.T if wide else matrix, rank, part)
        if found is not None:
            return _fix_signs(Spectrum(found.V, found.S, found.U) if wide else found)
    U, S, right = torch.linalg.svd(matrix, full_matrices=False)
    chosen = slice(rank) if rank is None or part == "top" else slice(k - rank, k)
    return _fix_signs(Spectrum(U[:, chosen], S[chosen], right.T[:, chosen]))


def _partial(matrix: Tensor, rank: int, part: Part) -> Spectrum | None:
    """Find r triples of a matrix that is not wide, None where only the exact decomposition gives them."""
    found, near = _largest(matrix, rank) if part == "top" else _smallest(matrix, rank)
    return _crowded(matrix, rank, near) if found is None and near is not None else found


class _Operator(NamedTuple):
    """A matrix M, as what it does to blocks of a few rows: X @ M.T and Y @ M. With columns some products are slow."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


def _largest(matrix: Tensor, rank: int) -> tuple[Spectrum | None, Tensor]:
    """Find triples; also say about where the largest singular values lie."""
    # Of such products a few rows times the transpose of a stored matrix is the fast one, so W is stored both ways.
    straight, turned = matrix.contiguous(), matrix.T.contiguous()
    operator = _Operator(lambda block: block @ straight.T, lambda block: block @ turned.T)
    steps = min(_STEPS, matrix.shape[1] // (2 * (rank + _OVERSAMPLING)))
    return _krylov(operator, matrix, rank, steps, _TOLERANCE)


def _smallest(matrix: Tensor, rank: int) -> tuple[Spectrum | None, Tensor | None]:
    """Find triples as the largest ones of the inverse, else say about where they lie; neither for a singular matrix."""
    outer, square = (None, matrix) if matrix.shape[0] == matrix.shape[1] else torch.linalg.qr(matrix)
    factors, pivots, _ = torch.linalg.lu_factor_ex(square)
    diagonal = factors.diagonal().abs()
    if diagonal.min() <= _ROUNDING * diagonal.max():
        return None, None
    operator = _Operator(
        lambda block: torch.linalg.lu_solve(factors, pivots, block, left=False),
        lambda block: torch.linalg.lu_solve(factors, pivots, block, left=False, adjoint=True),
    )
    inverse, near = _krylov(operator, square, rank, _INVERSE_STEPS, _INVERSE_TOLERANCE)
    if inverse is None:
        return None, 1 / near
    U, S, V = (tensor.flip(-1) for tensor in inverse)
    found = Spectrum(U if outer is None else outer @ U, 1 / S, V)
    return (found, None) if _holds(matrix, found) else (None, None)


def _crowded(matrix: Tensor, rank: int, near: Tensor) -> Spectrum | None:
    """Find triples at an end of the spectrum where singular values lie dense, but not near zero.

    The inverse of W.T @ W less a number a little beyond that end tells them apart.

    Args:
        matrix: W, not wide.
        rank: how many triples.
        near: estimates of the singular values at that end, from the end on.
    """
    size = matrix.shape[1]
    gram = matrix.new_empty(size, size)
    for start in range(0, size, _PANEL):  # only the lower triangle is read
        torch.mm(matrix[:, start:].T, matrix[:, start : start + _PANEL], out=gram[start:, start : start + _PANEL])
    end, inside = float(near[0]) ** 2, float(near[-1]) ** 2
    if abs(end - inside) <= _ROUNDING * float(gram.trace()):
        return None  # the squares are too coarse for these
    sign = 1.0 if end > inside else -1.0
    for distance in (1.0, 4.0, 16.0):
        root = -sign * gram
        root.diagonal().add_(sign * (end + distance * (end - inside)))
        root, failed = torch.linalg.cholesky_ex(root)  # fails if part of the spectrum lies beyond that number
        if not failed:
            break
    else:
        return None
    operator = _Operator(
        lambda block: torch.linalg.solve_triangular(root.T, block, upper=True, left=False),
        lambda block: torch.linalg.solve_triangular(root, block, upper=False, left=False),
    )
    directions = _krylov(operator, gram, rank, _SHIFTED_STEPS, _INVERSE_TOLERANCE)[0]
    if directions is None:
        return None
    image = directions.V.T.contiguous() @ matrix.T
    U, S, right = torch.linalg.svd(image.T, full_matrices=False)
    found = Spectrum(U, S, directions.V @ right.T)
    return found if _holds(matrix, found) else None


def _holds(matrix: Tensor, found: Spectrum) -> bool:
    """Say whether triples are triples of W: rounding errors may have grown in the solutions that they come from."""
    U, S, V = found.U.T.contiguous(), found.S[:, None], found.V.T.contiguous()
    errors = torch.cat([V @ matrix.T - S * U, U @ matrix - S * V], dim=1)
    mean = torch.linalg.matrix_norm(matrix) / matrix.shape[1] ** 0.5  # is not above the largest singular value
    return bool(torch.linalg.vector_norm(errors, dim=1).max() <= _TOLERANCE * mean)


def _krylov(
    operator: _Operator, like: Tensor, rank: int, steps: int, tolerance: float
) -> tuple[Spectrum | None, Tensor]:
    """Find the largest triples of M in the space that a random block and its images under powers of M.T @ M span.

    Flat spectra need the blocks of all powers together, not the last one only.

    Args:
        operator: M.
        like: a tensor of M's shape and type, on its device.
        rank: how many triples.
        steps: how many blocks at most.
        tolerance: how large a residual may be beside the least of the r singular values.

    Returns:
        The triples, None if they are not within the tolerance; the largest singular values, as far as they are known.
    """
    width = rank + _OVERSAMPLING
    generator = torch.Generator().manual_seed(0)  # the person's own random numbers stay as they are
    block = torch.randn(width, like.shape[1], generator=generator, dtype=like.dtype).to(like.device)
    space, images, gram = (like.new_empty(width * steps, size) for size in (*like.shape[::-1], width * steps))
    near = like.new_zeros(width)
    check, before, missing_before = _FIRST_CHECK, 0, 0.0
    for count in range(1, steps + 1):
        old, new, known = slice((count - 1) * width), slice((count - 1) * width, count * width), slice(count * width)
        for _ in range(2):  # where nearly all is taken away, once leaves rounding errors along it
            length = torch.linalg.vector_norm(block, dim=1).max()
            Q, R = torch.linalg.qr((block - (block @ space[old].T) @ space[old]).T)
            block = Q.T
            if R.diagonal().abs().min() > 0.1 * length:
                break
        space[new] = block
        images[new] = image = operator.forward(block)
        gram[new, known] = image @ images[known].T
        if count in (check, steps):
            squares, vectors = torch.linalg.eigh(gram[known, known])  # reads the lower triangle
            near = squares[-width:].flip(0).clamp(min=0).sqrt()
            # Small values carry little accuracy through the squares, so the r directions are decomposed anew.
            chosen = vectors[:, -rank:].T
            U, S, right = torch.linalg.svd((chosen @ images[known]).T, full_matrices=False)
            V = right @ chosen @ space[known]
            error = float(torch.linalg.vector_norm(operator.backward(U.T) - S[:, None] * V, dim=1).max())
            allowed = max(tolerance * float(S[-1]), _ROUNDING * float(S[0]))
            if error <= allowed:
                return Spectrum(U, S, V.T), near
            missing = math.log(error / allowed)
            wait = count // 2
            if before:
                left = missing * (count - before) / max(missing_before - missing, 1e-3)
                # Convergence quickens from step to step, but hardly threefold.
                if count + left / 3 > steps:
                    break
                wait = min(wait, math.ceil(0.75 * left))
            check, before, missing_before = count + wait, count, missing
        block = operator.backward(image)
    return None, near


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
    """Return the cache's size in bytes, ``$SUBSPACE_CACHE_BYTES`` or 4 GB; the files used least recently go first.

    Raises:
        SubspaceError: the variable is not a number of bytes.
    """
    given = os.environ.get("SUBSPACE_CACHE_BYTES", "").strip() or "4000000000"
    if not given.isdecimal():
        raise SubspaceError(f"SUBSPACE_CACHE_BYTES={given!r} is not a number of bytes; 4000000000, for example, is one")
    return int(given)


def _cached(
    weight: Tensor, rank: int | None, part: Part, compute: Callable[[Tensor, int | None, Part], Spectrum]
) -> Spectrum:
    folder = cache_folder()
    if folder is None:
        return compute(weight, rank, part)
    cache_limit()  # a value that is no number is refused before anything is computed
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
    data = weight.cpu()
    # A linear layer's weight comes here transposed: hashed as it lies in memory, it needs no copy.
    turned = not data.is_contiguous() and data.T.is_contiguous()
    data = data.T if turned else data.contiguous()
    order = "columns" if turned else "rows"
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{_VERSION} {tuple(data.shape)} {order} {data.dtype} {rank} {part if rank else 'all'}".encode())
    if data.numel():
        # Flat first: the strides of sides of length 1 may be anything.
        content = data.reshape(-1).view(torch.uint8).numpy().data
        pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
        # Hashing is most of what a stored decomposition costs; other threads' Python goes on beside it.
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
        with contextlib.suppress(FileNotFoundError):  # another process shrinks it, too
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= cache_limit():
            break
        path.unlink(missing_ok=True)
        total -= size
