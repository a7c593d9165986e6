"""The best approximation of a known W*: optimal where it says exact, falling where it says iterative."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import dense
from subspace_tuning.algebra.nodes import Affine
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import Method, environment, initial_factors
from subspace_tuning.theory import Approximation, Covariance, approximate, solve

FORMULAS = (
    "D1 @ W @ D2 + s * A @ B",
    "W @ (I + s * A @ B)",
    "W + s * (W * (A @ B))",
    "W + s * (A @ B - A0 @ B0)",
    "W + s * A @ B @ W",
    "W @ R",
    "unit(D1 @ W) @ D",
    "U @ diag(sigma) @ V.T + s * A @ D @ B",
    "U_r @ diag(sigma) @ V_r.T + rest",
    "W + U @ diag(u) @ diag(v) @ V.T",
    "W + s * (B @ A).T",
)
METHODS = [
    *(one for one in methods.every() if one.formula.is_linear and not one.formula.wraps_norm),
    *(methods.from_formula(text, name=text) for text in FORMULAS),
]
N, M, RANK = 12, 9, 3


def names(case: object) -> str | None:
    return case.name.replace(" ", "") if isinstance(case, Method) else None


def matrices(seed: int = 0, n: int = N, m: int = M) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, m, dtype=torch.float64, generator=generator)
    return W, W + 0.5 * torch.randn(n, m, dtype=torch.float64, generator=generator)


def rows(seed: int = 1) -> Tensor:
    mixing = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.randn(40, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)) @ mixing


def phi(case: Method, found: Approximation, W: Tensor, factors: dict[str, Tensor]) -> Tensor:
    """phi(W) from the factors alone, by the formula."""
    env: dict[str, Any] = {
        **found.constants,
        **factors,
        "W": W,
        "s": found.scale,
        "b": torch.zeros(W.shape[1]).double(),
    }
    if "rest" in case.formula.expression.names:
        env["rest"] = W - (env["U_r"] * env["S_r"]) @ env["V_r"].T
    expression = case.formula.expression
    return dense(expression.matrix if isinstance(expression, Affine) else expression, env)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "activations"])
@pytest.mark.parametrize("case", METHODS, ids=names)
def test_the_error_is_that_of_the_factors(case: Method, weighted: bool) -> None:
    W, W_star = matrices()
    X = rows() if weighted else None
    found = approximate(case, W, W_star, r=RANK, activations=X)
    assert found.factors.keys() == set(case.formula.trainable)
    difference = W_star - phi(case, found, W, found.factors)
    whole = W_star if X is None else X @ W_star
    error = torch.linalg.vector_norm(difference if X is None else X @ difference) / torch.linalg.vector_norm(whole)
    assert found.relative_error == pytest.approx(float(error), rel=1e-6, abs=1e-9)
    start = torch.linalg.vector_norm((W_star - W) if X is None else X @ (W_star - W)) / torch.linalg.vector_norm(whole)
    # Methods that start from W can do nothing too; PiSSA must give up part of W's own rank to do so, and can.
    assert found.relative_error <= float(start) * (1 + 1e-9)
    if found.lower_bound is not None:
        assert found.lower_bound <= found.relative_error * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "activations"])
@pytest.mark.parametrize("case", METHODS, ids=names)
def test_no_perturbation_improves_an_exact_result(case: Method, weighted: bool) -> None:
    W, W_star = matrices(2)
    X = rows() if weighted else torch.eye(N, dtype=torch.float64)
    found = approximate(case, W, W_star, r=RANK, activations=X if weighted else None)
    # A turn of the blocks ends where none of them can be improved by itself; a general solver at a local minimum.
    least = float(torch.linalg.vector_norm(X @ (W_star - phi(case, found, W, found.factors))))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(10):
            moved = {
                name: factor + size * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
                for name, factor in found.factors.items()
            }
            error = float(torch.linalg.vector_norm(X @ (W_star - phi(case, found, W, moved))))
            assert error >= least * (1 - 1e-5) - 1e-9, size


# Where a drawn start is part of the formula, each start makes a family of its own.
FAMILIES = [
    case
    for case in METHODS
    if not any(
        name.endswith("0") and name[:-1] in case.formula.trainable and not case.anchors()[name[:-1]]
        for name in case.formula.expression.names
    )
]


@pytest.mark.parametrize("case", FAMILIES, ids=names)
def test_what_lies_in_the_family_is_found(case: Method) -> None:
    """W* is made by the method itself: exact methods find it to rounding, the others come near."""
    W, _ = matrices(3)
    torch.manual_seed(4)
    entries = max(1, round((case.budget or 0.005) * W.numel()))
    made = initial_factors(case, W, RANK, random=True, scale=2.0, entries=entries, directions=2)
    constants = made.constants
    if case.selection == "magnitude":
        constants = initial_factors(case, W, RANK, entries=entries).constants
    env: dict[str, Any] = dict(environment(case, W, made.parameters, constants, 2.0, torch.zeros(M).double()))
    expression = case.formula.evaluated
    W_star = dense(expression.matrix if isinstance(expression, Affine) else expression, env)
    found = approximate(case, W, W_star, r=RANK, directions=2 if case.formula.chooses_directions else None)
    if found.how == "exact":
        assert found.relative_error < 1e-10
    else:
        # Scales and low-rank terms together have many stationary points, so near is all that can be asked.
        before = float(torch.linalg.vector_norm(W_star - W) / torch.linalg.vector_norm(W_star))
        assert found.relative_error < 0.5 * before


@pytest.mark.parametrize("case", METHODS, ids=names)
def test_turns_of_blocks_never_lose(case: Method) -> None:
    W, W_star = matrices(5)
    history = approximate(case, W, W_star, r=RANK).history
    assert all(later <= earlier * (1 + 1e-12) + 1e-15 for earlier, later in pairwise(history))


INCLUSIONS = [
    (included, case.name) for case in methods.every() for included in case.includes if case.formula.is_linear
] + [
    ("ssb", "D1 @ W @ D2 + s * A @ B"),
    ("lora", "D1 @ W @ D2 + s * A @ B"),
    ("lora", "dora"),
    ("ia3", "dora"),
    ("lora", "lora_dash"),
    ("lora", "spt"),
    ("lora", "xattn"),
    ("svdiff", "sam_parser"),
    ("sam_parser", "U @ diag(sigma) @ V.T + s * A @ D @ B"),
]


@pytest.mark.parametrize(
    ("inner", "outer", "weighted"),
    [
        pytest.param(*pair, weighted, marks=[pytest.mark.slow] if weighted and index % 3 else [])
        for index, pair in enumerate(INCLUSIONS)
        for weighted in (False, True)
    ],
)
def test_inclusions_order_the_errors(inner: str, outer: str, weighted: bool) -> None:
    for seed in range(3):
        W, W_star = matrices(seed)
        X = rows() if weighted else None
        small, large = (approximate(name, W, W_star, r=RANK, activations=X) for name in (inner, outer))
        assert large.relative_error <= small.relative_error * (1 + 1e-9) + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 14), st.integers(2, 14), st.integers(0, 10**6), st.data())
def test_low_rank_is_eckart_and_young(n: int, m: int, seed: int, data: st.DataObject) -> None:
    W, W_star = matrices(seed, n, m)
    r = data.draw(st.integers(1, min(n, m)))
    values = torch.linalg.svdvals(W_star - W)
    best = float(torch.linalg.vector_norm(values[r:]) / torch.linalg.vector_norm(W_star))
    for name in ("lora", "trilora", "flora", "moslora"):
        found = approximate(name, W, W_star, r=r)
        assert found.how == "exact"
        assert found.relative_error == pytest.approx(best, abs=1e-10)


def test_scales_are_least_squares() -> None:
    W, W_star = matrices()
    rows_wise = (W * W_star).sum(1) / W.square().sum(1)
    columns_wise = (W * W_star).sum(0) / W.square().sum(0)
    assert torch.allclose(approximate("ssl", W, W_star).factors["D1"], rows_wise)
    assert torch.allclose(approximate("ia3", W, W_star).factors["D2"], columns_wise)
    U, _, right = torch.linalg.svd(W, full_matrices=False)
    sigma = approximate("sam_parser", W, W_star).factors["sigma"]
    assert torch.allclose(sigma, (U.T @ W_star @ right.T).diagonal())
    clipped = approximate("svdiff", W, W_star)
    assert torch.allclose(clipped.factors["D"] + clipped.constants["S"], sigma.clamp(min=0))


def test_the_gauge_of_two_scales_is_fixed() -> None:
    W, W_star = matrices()
    D1, D2 = (approximate("ssb", W, W_star).factors[name] for name in ("D1", "D2"))
    assert float(D1.square().mean()) == pytest.approx(float(D2.square().mean()))
    assert D1.mean() > 0


def test_activations_and_their_covariance_agree() -> None:
    W, W_star = matrices()
    X = rows()
    for name in ("ssl", "lora", "sam_parser", "fishmask", "dora"):
        by_rows = approximate(name, W, W_star, r=2, activations=X)
        by_moment = approximate(name, W, W_star, r=2, covariance=X.T @ X)
        assert by_rows.relative_error == pytest.approx(by_moment.relative_error, rel=1e-6)


def test_few_rows_leave_what_they_do_not_see() -> None:
    """Fewer rows than inputs: what they cannot see makes no error."""
    W, W_star = matrices()
    found = approximate("lora", W, W_star, r=2, activations=rows()[:2])
    assert found.relative_error < 1e-10


@pytest.mark.parametrize("zero", ["row", "column", "all"])
@pytest.mark.parametrize("case", METHODS, ids=names)
def test_zeros_in_the_weight_do_no_harm(case: Method, zero: str) -> None:
    W, W_star = matrices()
    W = torch.zeros_like(W) if zero == "all" else W.clone()
    if zero == "row":
        W[3] = 0
    if zero == "column":
        W[:, 2] = 0
    found = approximate(case, W, W_star, r=RANK)
    assert all(torch.isfinite(factor).all() for factor in found.factors.values())
    assert found.relative_error <= 1 + 1e-9


def test_a_formula_of_no_known_form_goes_to_the_general_solver() -> None:
    W, W_star = matrices(n=6, m=5)
    own = approximate("D1 @ W + D1 @ A @ B", W, W_star, r=1)
    assert own.how == "heuristic"
    # It includes scaling the rows, and a low-rank term beside W.
    assert (
        own.relative_error <= min(approximate(name, W, W_star, r=1).relative_error for name in ("ssl", "lora")) + 1e-6
    )


def test_the_bias_is_taken_exactly() -> None:
    W, W_star = matrices()
    bias, wanted = torch.randn(M), torch.randn(M)
    found = approximate("bitfit", W, W_star, bias=bias, bias_star=wanted)
    assert torch.allclose(bias + found.factors["delta"], wanted.double())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("parallel_adapter", {}, "has no dense phi"),
        ("pfeiffer", {}, "has no dense phi"),
        ("lora", {"r": 10}, "rank 10 is not between 1 and min(n, m) = 9"),
        ("lora", {"W_star": torch.ones(9, 12)}, "12 x 9 and W* is 9 x 12"),
        ("lora", {"W_star": torch.full((12, 9), torch.nan)}, "W* has entries that are not finite"),
        ("lora", {"W": torch.ones(3)}, "must be a matrix"),
        ("lora", {"activations": torch.ones(4, 7)}, "7 columns and W has 12 rows"),
        ("lora", {"covariance": -torch.eye(12)}, "negative eigenvalues"),
        ("lora", {"covariance": torch.eye(12), "activations": torch.ones(4, 12)}, "not both"),
        ("lara", {}, "did you mean lora"),
    ],
)
def test_bad_input_is_told(name: str, change: dict[str, Any], words: str) -> None:
    W, W_star = matrices()
    with pytest.raises(SubspaceError, match=re.escape(words)):
        approximate(name, **{"W": W, "W_star": W_star, **change})


def test_shrinking_is_that_of_ledoit_and_wolf() -> None:
    from sklearn.covariance import ledoit_wolf

    x = rows()[:20]
    seen = Covariance(N)
    for part in x.split(7):
        seen.add(part.unsqueeze(0))
    wanted, weight = ledoit_wolf(x.numpy(), assume_centered=True)
    assert seen.shrinkage == pytest.approx(weight)
    assert torch.allclose(seen.shrunk(), torch.from_numpy(wanted))
    with pytest.raises(SubspaceError, match="5 columns"):
        seen.add(torch.ones(2, 5))
    with pytest.raises(SubspaceError, match="there is no covariance yet: add rows first"):
        Covariance(3).shrunk()


@pytest.mark.parametrize("name", ["ssl", "ia3", "sam_parser", "svdiff"])
@pytest.mark.parametrize("size", [1e-3, 1e-5, 9e-7, 1e-9])
def test_a_tiny_row_or_column_counts(name: str, size: float) -> None:
    W, _ = matrices()
    W[0] *= size
    W[:, 1] *= size
    W_star = W.clone()
    W_star[0] /= size
    W_star[:, 2] *= 1.5
    found = approximate(name, W, W_star)
    if name == "ssl":
        assert approximate(name, W, torch.diag(torch.linspace(1, 2, N).double()) @ W).relative_error < 1e-14
    assert found.how == "exact"
    factor = next(iter(found.factors))
    for step in (1e-3, -1e-3):
        for index in range(len(found.factors[factor])):
            factors = {**found.factors, factor: found.factors[factor].clone()}
            factors[factor][index] *= 1.0 + step
            changed = torch.linalg.vector_norm(W_star - phi(methods.get(name), found, W, factors))
            assert float(changed) >= found.error * (1.0 - 1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_a_tiny_row_counts_for_both_sides(size: float) -> None:
    W, _ = matrices()
    W[0] *= size
    rows, columns = torch.linspace(1, 2, N).double(), torch.linspace(2, 1, M).double()
    rows[0] /= size
    found = approximate("ssb", W, torch.diag(rows) @ W @ torch.diag(columns))
    assert found.relative_error < 1e-9


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8])
def test_a_feature_that_is_hardly_seen_counts(size: float) -> None:
    W, W_star = matrices()
    X = rows()
    X[:, 0] *= size
    W_star[0] += 1.0 / size
    found = approximate("ssl", W, W_star, activations=X)
    images = torch.stack([(X[:, [i]] @ W[[i]]).flatten() for i in range(N)], 1)
    scale = torch.linalg.vector_norm(images, dim=0)
    best = torch.linalg.lstsq(images / scale, (X @ W_star).flatten().unsqueeze(1)).solution[:, 0] / scale
    wanted = torch.linalg.vector_norm(images @ best - (X @ W_star).flatten())
    assert found.how == "exact"
    assert found.error <= float(wanted) * (1 + 1e-9)
    assert found.lower_bound is not None
    assert found.lower_bound <= float(wanted) / found.norm * (1 + 1e-9)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1 / 3, 16 / 7, 16 / 8**0.5])
def test_any_scale_is_exact(scale: float) -> None:
    W, _ = matrices()
    W_star = W + torch.randn(N, 2, dtype=torch.float64) @ torch.randn(2, M, dtype=torch.float64)
    found = approximate("lora", W, W_star, r=2, scale=scale)
    assert found.relative_error < 5e-15
    assert float((W_star - phi(methods.get("lora"), found, W, found.factors)).norm() / W_star.norm()) < 5e-15


@pytest.mark.parametrize("name", ["lora_dash", "spt"])
def test_a_choice_beside_other_blocks_is_a_heuristic(name: str) -> None:
    W, W_star = matrices()
    assert approximate(name, W, W_star, r=2, directions=2, entries=2).how == "heuristic"


def test_exchanged_entries_are_no_worse_than_the_greedy_choice() -> None:
    W, W_star = matrices()
    X = rows()
    found = approximate("fishmask", W, W_star, activations=X, entries=6)
    gram, wanted = X.T @ X, X.T @ X @ (W_star - W)
    greedy = (wanted.square() / gram.diagonal().unsqueeze(1)).flatten().topk(6).indices
    values = solve.entries(X @ (W_star - W), X, 6, greedy)[1]
    change = torch.zeros(N * M, dtype=torch.float64).index_put((greedy,), values).view(N, M)
    assert found.error <= float(torch.linalg.vector_norm(X @ (W_star - W - change))) * (1 + 1e-12)


def test_what_is_not_trained_needs_no_start() -> None:
    W, W_star = matrices()
    assert approximate("U @ G @ V.T", W, U_times := W @ torch.randn(M, M).double()).norm == pytest.approx(
        float(U_times.norm())
    )
    assert approximate("W + s * A @ B", W, W_star, r=2, starts={"B": "normal(0.1)"}).how == "exact"
    with pytest.raises(SubspaceError, match="starts are for formulas"):
        approximate("lora", W, W_star, r=2, starts={"B": "zeros"})
