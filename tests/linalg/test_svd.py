"""Decompositions: exact, leading, trailing, and the cache that never changes a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning import SubspaceError
from subspace_tuning.linalg import Part, krylov, svd
from subspace_tuning.linalg.cache import LARGEST_SHARE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path))
    return tmp_path


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40), rank=st.integers(1, 40), part=st.sampled_from(["top", "bottom"]))
def test_parts_are_parts_of_the_whole(n: int, m: int, rank: int, part: Part) -> None:
    torch.manual_seed(n + 41 * m)
    weight, rank = torch.randn(n, m, dtype=torch.float64), min(rank, n, m)
    U, S, V = svd(weight, cache=False)
    torch.testing.assert_close(U * S @ V.T, weight)
    chosen = slice(None, rank) if part == "top" else slice(min(n, m) - rank, None)
    own = svd(weight, rank, part, cache=False)
    torch.testing.assert_close(own.S, S[chosen], atol=1e-7, rtol=1e-7)
    for side in (own.U, own.V):
        torch.testing.assert_close(side.T @ side, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(own.U * own.S @ own.V.T, U[:, chosen] * S[chosen] @ V[:, chosen].T, atol=1e-6, rtol=1e-6)


def _orthonormal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def _with_values(n: int, m: int, values: Tensor) -> Tensor:
    k = min(n, m)
    return _orthonormal(n, 1)[:, :k] * values @ _orthonormal(m, 2)[:, :k].T


def _falling(size: int) -> Tensor:
    return torch.arange(size, 0, -1, dtype=torch.float64)


# name -> singular values, of any number of them, in falling order
SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "random": lambda k: torch.linalg.svdvals(torch.randn(k, k, generator=torch.Generator().manual_seed(3)).double()),
    "power": lambda k: torch.arange(1, k + 1, dtype=torch.float64) ** -0.7,
    "exponential": lambda k: torch.logspace(0, -4, k, dtype=torch.float64),
    "steep": lambda k: torch.logspace(0, -12, k, dtype=torch.float64),
    "linear": lambda k: _falling(k) / k,
    "away from zero": lambda k: 1 + _falling(k) / k,
    "one tiny": lambda k: torch.where(_falling(k) == 1, 1e-9, 1 + _falling(k) / k),
    "rank k - 3": lambda k: torch.where(_falling(k) <= 3, 0.0, _falling(k) / k),
    "rank 3": lambda k: torch.where(_falling(k) > k - 3, _falling(k) / k, 0.0),
    "repeated": lambda k: 1 + torch.div(_falling(k) - 1, 5, rounding_mode="floor") / k,
    "repeated often": lambda k: 1 + torch.div(_falling(k) - 1, 40, rounding_mode="floor") / k,
    "all equal": lambda k: torch.ones(k, dtype=torch.float64),
    "all zero": lambda k: torch.zeros(k, dtype=torch.float64),
}


def _check_triples(weight: Tensor, rank: int, part: Part) -> None:
    """Triples are those of LAPACK, to about a millionth of the largest singular value."""
    # LAPACK's gesvd: torch calls gesdd, which fails on some matrices with many equal singular values.
    U, S, right = map(torch.from_numpy, scipy.linalg.svd(weight.numpy(), full_matrices=False, lapack_driver="gesvd"))
    k, scale = len(S), float(S[0]) or 1.0
    own = svd(weight, rank, part, cache=False)
    start = 0 if part == "top" else k - rank
    torch.testing.assert_close(own.S, S[start : start + rank], atol=1e-9 * scale, rtol=0)
    for side in (own.U, own.V):
        torch.testing.assert_close(side.T @ side, torch.eye(rank, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(weight @ own.V, own.U * own.S, atol=3e-6 * scale, rtol=0)
    torch.testing.assert_close(weight.T @ own.U, own.V * own.S, atol=3e-6 * scale, rtol=0)
    # The triples of equal singular values are any; where the r of them stand alone, their sum is not.
    edge = rank if part == "top" else k - rank
    if edge == k or edge == 0 or S[edge - 1] - S[edge] > 1e-4 * scale:
        chosen = slice(start, start + rank)
        theirs = U[:, chosen] * S[chosen] @ right[chosen]
        torch.testing.assert_close(own.U * own.S @ own.V.T, theirs, atol=3e-6 * scale, rtol=0)


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("shape", [(320, 320), (600, 300), (280, 700)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_few_triples_are_those_of_the_exact_decomposition(spectrum: str, shape: tuple[int, int], part: Part) -> None:
    _check_triples(_with_values(*shape, SPECTRA[spectrum](min(shape))), 8, part)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(150, 330),
    m=st.integers(150, 330),
    rank=st.integers(1, 12),
    spectrum=st.sampled_from(sorted(SPECTRA)),
    part=st.sampled_from(["top", "bottom"]),
)
def test_few_triples_at_any_size(n: int, m: int, rank: int, spectrum: str, part: Part) -> None:
    _check_triples(_with_values(n, m, SPECTRA[spectrum](min(n, m))), rank, part)


def test_only_what_is_singular_takes_the_exact_decomposition() -> None:
    for spectrum, values in SPECTRA.items():
        weight = _with_values(400, 320, values(320))
        if spectrum == "all zero":
            continue  # goes there at once
        assert krylov.partial_svd(weight, 8, "top") is not None, spectrum
        singular = spectrum in ("rank k - 3", "rank 3", "one tiny")
        assert (krylov.partial_svd(weight, 8, "bottom") is None) == singular, spectrum


@pytest.mark.slow  # two threads on a busy machine wait for each other
@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("spectrum", ["random", "power", "away from zero"])
def test_triples_do_not_depend_on_the_threads(spectrum: str, part: Part) -> None:
    weight = _with_values(400, 320, SPECTRA[spectrum](320))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(svd(weight, 8, part, cache=False))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)  # float32 tells 6e-8 apart


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("size", [1e-200, 1e-100, 1e100, 1e200])
def test_extreme_numbers_are_decomposed(size: float, part: Part) -> None:
    weight = _with_values(320, 320, SPECTRA["power"](320))
    torch.testing.assert_close(svd(weight * size, 8, part, cache=False).S / size, svd(weight, 8, part, cache=False).S)


def test_the_randomised_part_is_exact_where_the_spectrum_falls() -> None:
    U, V = (torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64))[0] for _ in range(2))
    values = 0.97 ** torch.arange(300, dtype=torch.float64)
    own = svd(U * values @ V.T, 8, cache=False)
    torch.testing.assert_close(own.S, values[:8], atol=1e-10, rtol=1e-10)


def test_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    svd(torch.ones(300, 200), 4, cache=False)
    assert torch.equal(state, torch.get_rng_state())


def test_signs_are_fixed() -> None:
    weight = torch.randn(6, 5)
    U, _, _ = svd(weight, cache=False)
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_cache_gives_the_same_and_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    weight = torch.randn(9, 7).to(dtype)
    first = svd(weight, 3)
    assert first.U.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (path,) = cache.iterdir()
    monkeypatch.setattr("subspace_tuning.linalg.decomposition._compute", lambda *_: pytest.fail("decomposed again"))
    for ours, again in zip(first, svd(weight.clone(), 3), strict=True):
        assert torch.equal(ours, again)
    monkeypatch.undo()
    monkeypatch.setenv("SUBSPACE_CACHE", str(cache))
    path.write_bytes(path.read_bytes()[:50])  # a damaged file is decomposed anew
    assert torch.equal(svd(weight, 3).S, first.S)
    svd(weight + 1, 3)
    svd(weight, 3, "bottom")
    svd(weight, 4)
    svd(weight.T, 3)
    assert len(list(cache.iterdir())) == 5


@pytest.mark.usefixtures("cache")
def test_the_cache_tells_a_matrix_from_its_transpose() -> None:
    weight = torch.randn(5, 5)
    svd(weight, 2)
    assert torch.equal(svd(weight.T, 2).U, svd(weight.T, 2, cache=False).U)


def test_the_cache_keeps_to_its_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_CACHE_BYTES", "10000")
    for seed in range(25):
        svd(torch.full((4, 4), float(seed)) + torch.eye(4))
    assert 0 < sum(path.stat().st_size for path in cache.iterdir()) <= 10000


def test_what_takes_too_much_of_the_cache_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompositions of that size would push each other out before any is read again."""
    weight = torch.randn(8, 8)
    size = 4 * (8 * 8 + 8 + 8 * 8)
    monkeypatch.setenv("SUBSPACE_CACHE_BYTES", str(round(size / LARGEST_SHARE) - 1))
    found = svd(weight)
    assert not list(cache.iterdir())
    svd(weight, 2)  # a few triples are small
    monkeypatch.setenv("SUBSPACE_CACHE_BYTES", str(round(size / LARGEST_SHARE)))
    assert torch.equal(svd(weight).U, found.U)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("given", ["4 GB", "1e9", "-1", "0x10"])
def test_a_size_that_is_no_number_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SUBSPACE_CACHE_BYTES", given)
    with pytest.raises(SubspaceError, match=r"^SUBSPACE_CACHE_BYTES='.*' is not a number of bytes"):
        svd(torch.eye(4))
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path / "file" / "folder"))
    assert svd(torch.eye(3)).S.tolist() == [1, 1, 1]
    assert "cannot be written" in caplog.text


def test_bad_weights_are_refused() -> None:
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(SubspaceError, match="not finite"):
            svd(torch.tensor([[1.0, 2.0], [float(bad), 3.0]]))
    assert svd(torch.full((2, 2), 1e160, dtype=torch.float64)).S.isfinite().all()  # unlike their squares
    with pytest.raises(SubspaceError, match="rank 3 is not between 1 and min"):
        svd(torch.eye(2), 3)


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("part", ["top", "bottom"])
def test_where_one_algorithm_fails_another_decomposes(
    rank: int | None, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = _with_values(286, 280, SPECTRA["repeated often"](280))
    monkeypatch.setattr(torch.linalg, "svd", _fails)
    found = svd(weight, rank, part, cache=False)
    if rank is None:
        torch.testing.assert_close((found.U * found.S) @ found.V.T, weight)
    else:
        _check_triples(weight, rank, part)


def _fails(*args: object, **kwargs: object) -> None:
    raise torch.linalg.LinAlgError("the algorithm failed to converge")
