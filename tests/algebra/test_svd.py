"""Decompositions: exact, leading, trailing, and the cache that never changes a result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning import SubspaceError
from subspace_tuning.algebra import svd as module
from subspace_tuning.algebra.svd import svd


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path))
    return tmp_path


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), m=st.integers(1, 40), rank=st.integers(1, 40), part=st.sampled_from(["top", "bottom"]))
def test_parts_are_parts_of_the_whole(n: int, m: int, rank: int, part: module.Part) -> None:
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
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("decomposed again"))
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


def test_the_cache_keeps_to_its_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_CACHE_BYTES", "3000")
    for seed in range(6):
        svd(torch.full((8, 8), float(seed)) + torch.eye(8))
    assert 0 < sum(path.stat().st_size for path in cache.iterdir()) <= 3000


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path / "file" / "folder"))
    assert svd(torch.eye(3)).S.tolist() == [1, 1, 1]
    assert "cannot be written" in caplog.text


def test_bad_weights_are_refused() -> None:
    with pytest.raises(SubspaceError, match="not finite"):
        svd(torch.full((2, 2), float("nan")))
    with pytest.raises(SubspaceError, match="rank 3 is not between 1 and min"):
        svd(torch.eye(2), 3)
