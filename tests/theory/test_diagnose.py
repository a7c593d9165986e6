"""Diagnosis and budgets: known answers, and agreement with chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import Sizes
from subspace_tuning.errors import SubspaceError
from subspace_tuning.theory import (
    Change,
    Diagnosis,
    angles,
    cosine,
    diagnose,
    energy_rank,
    read_budget,
    skewness,
    spread_ranks,
    uniform_rank,
)
from subspace_tuning.theory.budget import parameters


def orthonormal(n: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator))[0]


def diagnosis(share: float = 0.0, size: float = 0.1, k: int = 4) -> Diagnosis:
    """A weight with a falling spectrum, and a change of rank k of which a share lies in its leading subspace."""
    U, V = orthonormal(40, 20), orthonormal(20, 20, 1)
    W = (U * torch.linspace(4, 1, 20, dtype=torch.float64)) @ V.T
    left = torch.cat([math.sqrt(share) * U[:, :k], math.sqrt(1 - share) * U[:, 10 : 10 + k]], 1)
    right = torch.cat([V[:, :k], V[:, 10 : 10 + k]], 1)
    return Diagnosis(W, Change(size * left, right), k)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_are_those_that_were_put_in(share: float) -> None:
    found = diagnosis(share)
    assert found.reconstruction_share == pytest.approx(share, abs=1e-12)


def test_a_change_within_the_leading_subspace_lies_at_no_angle() -> None:
    inside, outside = diagnosis(1.0), diagnosis(0.0)
    assert (inside.left.overlap, inside.right.overlap) == pytest.approx((1.0, 1.0))
    assert inside.left.largest == pytest.approx(0.0, abs=1e-5)
    assert outside.left.overlap == pytest.approx(0.0, abs=1e-12)
    assert outside.left.smallest == pytest.approx(90.0)
    assert outside.left.chordal == pytest.approx(2.0)
    assert inside.stable_rank == pytest.approx(4.0)
    assert inside.effective_rank == pytest.approx(4.0)


def test_random_subspaces_meet_their_baseline() -> None:
    """The mean over draws; its deviation is known from the draws themselves."""
    drawn = [angles(orthonormal(60, 5, seed), orthonormal(60, 8, 1000 + seed)) for seed in range(200)]
    overlaps = torch.tensor([one.overlap for one in drawn])
    assert abs(overlaps.mean() - drawn[0].random) < 4 * overlaps.std() / math.sqrt(len(drawn))
    chordal = torch.tensor([one.chordal for one in drawn])
    assert chordal.mean() == pytest.approx(drawn[0].chordal_random, rel=0.02)
    shares = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        change = Change(
            torch.randn(40, 2, dtype=torch.float64, generator=generator),
            torch.randn(20, 2, dtype=torch.float64, generator=generator),
        )
        shares.append(Diagnosis(diagnosis().W, change, 4).reconstruction_share)
    measured = torch.tensor(shares)
    assert abs(measured.mean() - diagnosis().reconstruction_random) < 4 * measured.std() / math.sqrt(len(shares))


def test_intruders_come_with_large_changes_in_new_directions() -> None:
    U, V = orthonormal(40, 24), orthonormal(20, 20, 1)
    W = (U[:, :20] * torch.linspace(4, 1, 20, dtype=torch.float64)) @ V.T
    new = Change(10.0 * U[:, 20:22], V[:, :2])  # left directions that W does not have
    assert Diagnosis(W, new, 4).intruders() == Diagnosis(W, new, 4).intruders(subspace=True) == 2
    assert Diagnosis(W, Change(0.01 * new.left, new.right), 4).intruders() == 0
    # A turn within W's leading span is new to every single direction, and not to their span.
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    mixed = Change(20.0 * U[:, :4] @ turn * torch.tensor([4.0, 3.0, 2.0, 1.0]), V[:, :4])
    found = Diagnosis(W, mixed, 4)
    assert found.intruders(threshold=0.9) > 0
    assert found.intruders(subspace=True, threshold=0.9) == 0


def test_task_directions_are_those_that_moved_most() -> None:
    U, V = orthonormal(40, 20), orthonormal(20, 20, 1)
    S = torch.linspace(4, 1, 20, dtype=torch.float64)
    # The same step along directions 2 and 15: beside the smaller singular value it counts more.
    found = Diagnosis((U * S) @ V.T, Change(U[:, [2, 15]], V[:, [2, 15]]), 4).task_directions(2)
    assert [index for index, _ in found] == [15, 2]
    assert found[0][1] == pytest.approx(1 / float(S[15]), rel=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_task_directions_are_those_of_lora_dash(size: float) -> None:
    """The change along a direction beside its singular value and 1e-6 (arXiv 2409.01035)."""
    U, V = orthonormal(40, 20), orthonormal(20, 20, 1)
    S = size * torch.linspace(4, 1, 20, dtype=torch.float64)
    found = Diagnosis((U * S) @ V.T, Change(U[:, [2, 15]] * size, V[:, [2, 15]]), 4).task_directions(2)
    for index, rate in found:
        assert index in (2, 15)
        assert rate == pytest.approx(size / (float(S[index]) + 1e-6), rel=1e-5)


def test_no_change_is_diagnosed_as_none() -> None:
    found = Diagnosis(diagnosis().W, Change(torch.zeros(40, 2).double(), torch.zeros(20, 2).double()), 4)
    assert (found.size, found.stable_rank, found.effective_rank, found.reconstruction_share) == (0, 0, 0, 0)
    assert found.intruders() == 0
    assert math.isnan(found.left.overlap)


def test_comparing_two_changes() -> None:
    one, other = diagnosis(1.0).change, diagnosis(0.0).change
    assert cosine(one, one) == pytest.approx(1.0)
    assert cosine(one, Change(-2 * one.left, one.right)) == pytest.approx(-1.0)
    assert cosine(one, other) == pytest.approx(0.0, abs=1e-12)


def test_skewness_is_zero_for_orthogonal_columns_and_one_for_parallel_ones() -> None:
    assert skewness(5 * orthonormal(10, 3)) == pytest.approx(0.0, abs=1e-12)
    assert skewness(torch.ones(10, 3, dtype=torch.float64)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [("300k", 300_000), ("1.5M", 1_500_000), ("4096", 4096), ("0.3permille", 3000), ("0.3‰", 3000), ("1%", 100_000)],
)
def test_budgets_are_read(text: str, count: int) -> None:
    assert read_budget(text, 10_000_000) == count


@pytest.mark.parametrize("text", ["", "k", "-3", "0", "11M", "3 apples", "200%", "1e3"])
def test_wrong_budgets_are_told(text: str) -> None:
    with pytest.raises(SubspaceError, match="budget"):
        read_budget(text, 10_000_000)


@given(st.integers(100, 10**7), st.sampled_from(["lora", "flora", "dora", "adalora", "lora_dash"]))
def test_the_uniform_rank_is_the_nearest(budget: int, name: str) -> None:
    method, sizes = methods.get(name), [Sizes(384, 384, 1), Sizes(384, 1536, 1), Sizes(1536, 384, 1)]
    rank = uniform_rank(method, sizes, budget)
    off = abs(parameters(method, sizes, rank) - budget)
    for other in {max(1, rank - 1), min(384, rank + 1)}:
        assert off <= abs(parameters(method, sizes, other) - budget)


@settings(max_examples=50)
@given(st.data())
def test_spread_ranks_keep_the_most(data: st.DataObject) -> None:
    """Of matrices of one cost the greedy choice is the best one: it takes the largest values of all."""
    count = data.draw(st.integers(1, 4))
    spectra = {
        str(index): torch.tensor(sorted(data.draw(st.lists(st.floats(0.01, 10), min_size=5, max_size=5)), reverse=True))
        for index in range(count)
    }
    budget = data.draw(st.integers(1, 5 * count))
    ranks = spread_ranks(spectra, lambda name, rank: rank, budget, least=0)
    assert sum(ranks.values()) == budget
    kept = sum(float(values[: ranks[name]].square().sum()) for name, values in spectra.items())
    best = torch.cat(list(spectra.values())).square().sort(descending=True).values[:budget].sum()
    assert kept == pytest.approx(float(best), rel=1e-5)


def test_spread_ranks_within_unequal_costs() -> None:
    spectra = {"small": torch.tensor([2.0, 1.0]), "large": torch.tensor([3.0, 1.5])}
    cost = {"small": 10, "large": 100}
    ranks = spread_ranks(spectra, lambda name, rank: cost[name] * rank, 125, least=0)
    assert ranks == {"small": 2, "large": 1}
    with pytest.raises(SubspaceError, match="below rank 1"):
        spread_ranks(spectra, lambda name, rank: cost[name] * rank, 60)


def test_energy_ranks() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    assert [energy_rank(values, share) for share in (0.5, 0.9, 0.95, 1.0)] == [1, 2, 3, 3]
    assert energy_rank(torch.zeros(3), 0.9) == 1


def test_methods_without_a_rank_have_no_budget() -> None:
    with pytest.raises(SubspaceError, match="has no rank"):
        uniform_rank(methods.get("ssb"), [Sizes(3, 4, 1)], 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [0.0, 1e-4, 30.0, 60.0])
def test_small_angles_keep_their_digits(dtype: torch.dtype, degrees: float) -> None:
    basis = torch.linalg.qr(torch.randn(12, 6, dtype=torch.float64))[0]
    turned = basis[:, :3].clone()
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    turned[:, 2] = radians.cos() * basis[:, 2] + radians.sin() * basis[:, 5]
    found = diagnose.angles(basis[:, :3].to(dtype), turned.to(dtype))
    assert found.largest == pytest.approx(degrees, abs=1000 * torch.finfo(dtype).eps)
    assert found.chordal == pytest.approx(float(radians.sin()), abs=20 * torch.finfo(dtype).eps)


def test_zero_weights_and_zero_changes_are_defined() -> None:
    zero, change = torch.zeros(6, 5).double(), diagnose.Change(torch.randn(6, 1).double(), torch.randn(5, 1).double())
    none = diagnose.Change(torch.zeros(6, 1).double(), torch.zeros(5, 1).double())
    assert diagnose.Diagnosis(zero, change, 2).size == float("inf")
    for W in (zero, torch.randn(6, 5).double()):
        found = diagnose.Diagnosis(W, none, 2)
        assert (found.size, found.stable_rank, found.effective_rank, found.reconstruction_share) == (0.0, 0.0, 0.0, 0.0)
        assert len(found.task_directions(3)) == 3
