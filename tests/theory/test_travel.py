"""Travel: what the definition says, over the whole registry, and what must not or must change it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import Sizes, dense, parse
from subspace_tuning.algebra.nodes import Affine
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import Method, environment, initial_factors
from subspace_tuning.theory.rates import matched, travelled
from subspace_tuning.theory.travel import PATH, STEPS, Course, Frozen, Journey, course

FORMULAS = (
    "D1 @ W @ D2 + s * A @ B",
    "W @ (I + s * A @ B)",
    "W + Delta",
    "W + s * A @ B @ W",
    "W @ R",
    "unit(D1 @ W) @ D",
    "affine(W @ D2, b + delta)",
    "U_r @ diag(sigma) @ V_r.T + rest",
    "W + U_r @ G @ V_r.T",
)
METHODS = [*methods.every(), *(methods.from_formula(text, name=text) for text in FORMULAS)]
LINEAR = [case for case in METHODS if case.formula.is_linear and not case.formula.wraps_norm]
N, M, RANK, SCALE, RATE = 20, 12, 4, 2.0, 1e-2


def named(case: object) -> str | None:
    return case.name.replace(" ", "") if isinstance(case, Method) else None


def weight(n: int = N, m: int = M, seed: int = 0) -> Tensor:
    """A matrix with a few large singular values, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(n, m, generator=generator, dtype=torch.float64) / math.sqrt(n)
    left, right = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (n, m))
    return made + 4 * left @ right.T / n


def sizes_of(case: Method, n: int = N, m: int = M) -> Sizes:
    return Sizes(n, m, case.rank_in(n, m, RANK), max(1, n * m // 8) if case.formula.masked else 0, 2)


def frozen(case: Method, n: int = N, m: int = M, seed: int = 0) -> Frozen:
    bias = torch.linspace(-1, 1, m, dtype=torch.float64)
    if case.formula.wraps_norm:
        return Frozen(torch.ones(1, m, dtype=torch.float64), bias, 1e-5)
    return Frozen(weight(n, m, seed), bias)


def journey(case: Method, W: Tensor | None = None, scale: float = SCALE, seed: int = 0) -> Journey:
    own = frozen(case) if W is None else Frozen(W, frozen(case).bias)
    return Journey(case, own, sizes_of(case), scale, seed)


def by_definition(case: Method, one: Journey, rate: float) -> float:
    """The definition: phi(W) as a matrix, and a bias beside it, against G and the gradient of the bias."""
    W, bias, sizes = weight(), frozen(case).bias, sizes_of(case)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        positions = torch.randperm(N * M)[: sizes.p] if case.needs_calibration else None
        factors = initial_factors(
            case, W, sizes.r, cache=False, scale=SCALE, entries=sizes.p, directions=sizes.q, positions=positions
        )
    G, g = one.rows.T @ one.slopes, one.slopes.sum(0)
    theta = {name: value.clone().requires_grad_() for name, value in factors.parameters.items()}
    expression = case.formula.collected

    def loss() -> Tensor:
        env: dict[str, Any] = dict(environment(case, W, theta, factors.constants, SCALE, bias))
        env["rest"] = W - (env["U_r"] * env["S_r"]) @ env["V_r"].T if "U_r" in env and "S_r" in env else None
        if isinstance(expression, Affine):
            return (dense(expression.matrix, env) * G).sum() + (expression.bias.compact(env) * g).sum()
        return (dense(expression, env) * G).sum()

    start = loss()
    for _ in range(STEPS):
        slopes = torch.autograd.grad(loss(), list(theta.values()), allow_unused=True)
        for factor, slope in zip(theta.values(), slopes, strict=True):
            if slope is not None:
                factor.data -= rate * PATH / STEPS * slope.sign()
    return (start - loss()).item()


@pytest.mark.parametrize("case", LINEAR, ids=named)
def test_the_planned_travel_is_the_dense_one(case: Method) -> None:
    one = journey(case)
    assert one.travel(RATE) == pytest.approx(by_definition(case, one, RATE), rel=1e-9)


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_rows_have_the_left_spectrum_of_the_weight(n: int, m: int, seed: int) -> None:
    W = weight(n, m, seed)
    rows = Journey(methods.get("lora"), Frozen(W), Sizes(n, m, 1), SCALE, seed).rows
    gram = W @ W.T
    assert len(rows) == min(n, m)
    torch.testing.assert_close(rows.T @ rows / len(rows), gram / gram.diagonal().mean())


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_every_formula_travels_farther_at_a_higher_rate(case: Method) -> None:
    one = journey(case)
    distances = [one.travel(rate) for rate in (1e-4, 1e-3, 1e-2)]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_the_seed_alone_is_drawn_from(case: Method) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (journey(case, seed=seed).travel(RATE) for seed in (0, 0, 5))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())


SCALED = [
    case
    for case in METHODS
    if "s" in case.formula.expression.names and not case.takes_triples and journey(case, scale=0.0).travel(RATE) == 0
]


@pytest.mark.parametrize("case", SCALED, ids=named)
@given(factor=st.floats(0.1, 10), rate=st.floats(1e-4, 1e-1))
@settings(max_examples=3, deadline=None)
def test_travel_is_proportional_to_a_scale_of_all_that_trains(case: Method, factor: float, rate: float) -> None:
    once, more = journey(case), journey(case, scale=factor * SCALE)
    assert more.travel(rate) == pytest.approx(factor * once.travel(rate), rel=1e-6)


@pytest.mark.parametrize("name", ["pissa", "milora"])
@given(factor=st.floats(0.1, 10), rate=st.floats(1e-4, 1e-2))
@settings(max_examples=3, deadline=None)
def test_factors_of_the_weight_feel_the_roots_of_scale_and_weight(name: str, factor: float, rate: float) -> None:
    case = methods.get(name)
    once, scaled = journey(case).travel(rate), journey(case, scale=factor * SCALE)
    assert scaled.travel(rate / math.sqrt(factor)) == pytest.approx(once, rel=1e-6)
    assert journey(case, factor * weight()).travel(rate * math.sqrt(factor)) == pytest.approx(factor * once, rel=1e-6)


def degree(case: Method) -> int | None:
    """The power of a factor of W with which travel grows: 1 if phi(c W) = c phi(W), 0 if it adds what W is not in."""
    expression = case.formula.expression
    if not case.formula.is_linear or case.formula.masked or case.selection or case.takes_triples:
        return None
    if not case.formula.spectral and str(expression).startswith("W + "):
        return 0 if str(expression).count("W") == 1 else 1
    plain = {"ones", "identity", "kaiming_uniform", "zeros", "orthogonal", "paired"} >= {*case.starts_for().values()}
    alone = str(expression).count("W") == 1 and "+" not in str(expression)
    return 1 if plain and alone and case.formula.bias is None and not case.formula.spectral else None


@pytest.mark.parametrize("case", [case for case in METHODS if degree(case) is not None], ids=named)
@given(factor=st.floats(0.1, 10))
@settings(max_examples=3, deadline=None)
def test_a_multiple_of_the_weight_travels_as_its_formula_says(case: Method, factor: float) -> None:
    power = degree(case)
    assert power is not None
    once, more = journey(case), journey(case, factor * weight())
    assert more.travel(RATE) == pytest.approx(factor**power * once.travel(RATE), rel=1e-6)


def test_the_laws_on_scale_and_weight_have_cases() -> None:
    degrees = [degree(case) for case in METHODS]
    assert {"lora", "flora", "lokr", "liera"} <= {case.name for case in SCALED}
    assert degrees.count(0) >= 7 and degrees.count(1) >= 5


RENAMED = [case for case in METHODS if {"A", "B"} <= {*case.formula.trainable} and case.schedule is None]


@pytest.mark.parametrize("case", RENAMED, ids=named)
def test_names_of_factors_do_not_matter(case: Method) -> None:
    names = {"A": "P", "B": "Q", "A0": "P0", "B0": "Q0"}
    text = re.sub(r"\b[AB]0?\b", lambda found: names[found[0]], str(case.formula))
    starts = {names.get(name, name): start for name, start in case.starts.items()}
    other = replace(case, name="renamed", formula=parse(text), starts=starts, includes={})
    assert other.formula != case.formula
    assert journey(other).travel(RATE) == journey(case).travel(RATE)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("D1 @ W @ D2", "0.5 * D1 @ W @ (2 * D2)"),
        ("D1 @ W", "D1 @ W @ I"),
        ("W + s * A @ B", "s * A @ B + W"),
        ("W + s * A @ B", "W + s * (2 * A) @ (0.5 * B)"),
    ],
)
def test_constants_that_cancel_do_not_matter(text: str, same: str) -> None:
    one, other = (journey(methods.from_formula(given)) for given in (text, same))
    assert one.travel(RATE) == pytest.approx(other.travel(RATE), rel=1e-9)


ERROR = 1.4
"""The stated error of a rate from parts of two matrices, as a factor. A few trained numbers need more matrices."""


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_parts_of_a_matrix_give_the_rate_of_the_whole(case: Method) -> None:
    n, m = 192, 128
    whole, parts = (
        [
            course(case, frozen(case, n, m, seed), sizes_of(case, n, m), SCALE, seed=7 * seed, largest=largest)
            for seed in range(2 if case.counted(sizes_of(case, n, m)) > 10 else 16)
        ]
        for largest in (math.inf, 1.0)
    )
    target = travelled(whole, RATE / 10)
    assert all(one.ahead == 0 for one in whole) and all(one.ahead > 0 for one in parts)
    assert 1 / ERROR < matched(parts, target) / (RATE / 10) < ERROR


@given(st.floats(1e-5, 1e-1))
@settings(max_examples=5, deadline=None)
def test_the_matched_rate_travels_the_distance(rate: float) -> None:
    courses = [Course((journey(methods.get("flora")),), copies=3)]
    target = travelled(courses, rate)
    assert travelled(courses, matched(courses, target)) == pytest.approx(target, rel=0.021)


def test_a_formula_that_does_not_move_is_refused() -> None:
    still = [Course((journey(methods.get("lora"), scale=0.0),))]
    with pytest.raises(SubspaceError, match="no step moves phi"):
        matched(still, 1.0)


def test_a_distance_that_reflections_do_not_reach_is_refused() -> None:
    with pytest.raises(SubspaceError, match="cannot move as far"):
        matched([Course((journey(methods.get("hra")),))], 1e6)


def test_a_weight_of_zeros_is_refused() -> None:
    with pytest.raises(SubspaceError, match="weight of zeros"):
        journey(methods.get("lora"), torch.zeros(N, M, dtype=torch.float64))
