"""Every start keeps phi(W) = W and can be left: over the registry, over formulas of one's own, and over drawn ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig, SubspaceError, methods
from subspace_tuning.algebra import Sizes, parse, plan
from subspace_tuning.methods import Method
from subspace_tuning.methods.checks import start_problem

from .registry import METHODS, method_id

# Formulas that train without a word about their starts.
TRAINS = """
W + s * ((A @ B) * (C @ E))
W + s * ((A1 @ B1) * (A2 @ B2))
W + A1 @ B1 + A2 @ B2 + A3 @ B3 + A10 @ B10
W + s * tanh(A @ B)
W + s * (A @ D @ B - A0 @ D0 @ B0)
W + A @ D1 @ B - A0 @ D1_0 @ B0
W + s * (t * unit(A) @ unit(B.T).T - unit(A0) @ unit(B0.T).T)
(unit((W + s * A @ B).T) @ D).T
D @ unit((W + s * A @ B).T).T
affine(W, b) @ affine(D2, beta)
W + affine(A, b)
W + affine(A, a)
W + affine(s * A @ B, delta)
W + s * affine(A, a) @ affine(B, c)
W + gate(0.5 * L) * Delta
W @ (I + I * A)
I @ W + s * A @ B @ I
W + (s + t) * A @ B
W + (1 - t) * A @ B
W + s * A @ diag(1 - g) @ B
W @ diag(1 - g)
U @ S @ diag(z) @ V.T
W + A @ (I + B)
W + dropout * A @ B
""".strip().splitlines()

# Formulas that no training would move, or that are not W.
DEAD = {
    "W + s * relu(A @ B)": "every gradient is 0",
    "W + s * A @ B - s * A @ B": "every gradient is 0",
    "W + 0 * A @ B": "every gradient is 0",
    "W + s * A @ B + 0 * C": "never moves C",
    "W + s * A @ relu(B)": "every gradient is 0",
}
PAIR = "(I - 2 * unit(A) @ unit(A).T) @ (I - 2 * unit(A0) @ unit(A0).T) @ W"


def after_two_steps(text: str, **given: Any) -> dict[str, torch.Tensor]:
    """Train a layer for two steps and return how far each factor moved; phi(W) = W before them."""
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double()
    frozen, x = layer.weight.detach().clone(), torch.randn(12, 7, dtype=torch.float64)
    wanted, target = layer(x).detach(), torch.randn(12, 5, dtype=torch.float64)
    model = get_peft_model(nn.Sequential(layer), SubspaceConfig(formula=text, target_modules=["0"], **given))
    torch.testing.assert_close(model(x), wanted)
    moved = trained(model, x, target)
    assert torch.equal(frozen, layer.weight)
    unmerged = model.eval()(x)
    if methods.from_formula(text).formula.is_linear:
        model.merge_adapter()
        torch.testing.assert_close(model(x), unmerged)
    return moved


def trained(model: Any, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Train for two steps and return how far each factor moved."""
    factors = {n.rpartition(".")[2]: p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in factors.items()}
    optimiser = torch.optim.SGD(factors.values(), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        (model(x) - target).square().mean().backward()
        optimiser.step()
    return {name: (parameter - before[name]).detach().norm() for name, parameter in factors.items()}


@pytest.mark.parametrize("case", METHODS, ids=method_id)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_method_starts_at_w_and_leaves_it(case: Method, rank: int) -> None:
    alone = rank == 1 and "paired" in case.starts_for().values()  # one reflection is never the identity
    for one_hot in (False, True):
        found = start_problem(case, rank, one_hot)
        assert ("cannot leave its start" in str(found)) if alone else found is None


@pytest.mark.parametrize("text", TRAINS)
def test_a_formula_trains_every_factor_without_explicit_starts(text: str) -> None:
    moved = after_two_steps(text, r=2)
    assert set(moved) == set(parse(text).trainable)
    assert all(distance > 0 for distance in moved.values()), moved


def test_a_normalisation_is_scaled_and_shifted_from_the_frozen_one() -> None:
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(7).double(), torch.randn(12, 7, dtype=torch.float64)
    wanted = norm(x).detach()
    config = SubspaceConfig(formula="N @ affine(D1, beta)", target_modules=["0"])
    model: Any = get_peft_model(nn.Sequential(norm), config)
    torch.testing.assert_close(model(x), wanted)
    moved = trained(model, x, torch.ones_like(wanted))
    assert set(moved) == {"D1", "beta"}
    assert all(distance > 0 for distance in moved.values()), moved


@pytest.mark.parametrize("text", TRAINS)
@pytest.mark.parametrize("one_hot", [False, True], ids=["rows", "indices"])
def test_inferred_starts_hold_at_every_rank(text: str, one_hot: bool) -> None:
    assert [start_problem(methods.from_formula(text), rank, one_hot) for rank in (1, 2, 3, 8)] == [None] * 4


@pytest.mark.parametrize("text", DEAD)
@pytest.mark.parametrize("rank", [1, 2, 3, 40])
def test_a_start_that_nothing_leaves_is_refused(text: str, rank: int) -> None:
    with pytest.raises(SubspaceError, match=DEAD[text]) as caught:
        SubspaceConfig(formula=text, r=rank)
    assert "\n" not in str(caught.value)


def test_a_start_that_a_person_gives_may_be_dead_too() -> None:
    with pytest.raises(SubspaceError, match="every gradient is 0"):
        SubspaceConfig(formula="W + s * A @ B", starts={"A": "zeros", "B": "zeros"})


def test_the_rank_that_is_asked_for_counts() -> None:
    assert all(distance > 0 for distance in after_two_steps(PAIR, r=1).values())
    for options in ({"r": 3}, {"r": 1, "rank_pattern": {"0": 2}}):
        with pytest.raises(SubspaceError, match="not W at its start, at rank"):
            SubspaceConfig(formula=PAIR, **options)


@pytest.mark.parametrize(
    ("starts", "problem"),
    [
        ({"B": 0.0}, "not a mapping from factors to the names of starts"),
        ({"A": "normal(-1)"}, "negative"),
        ({"A": "normal(1, 2)"}, "it takes deviation"),
        ({"A": "zeros(1)"}, "it takes none"),
        ({"B": "constant"}, "it takes value"),
        ({"B": "constant(nan)"}, "not finite"),
        ({"d": "orthogonal"}, "is for matrices"),
        ({"d": "column_norms"}, "needs another start"),
        (["A"], "not a mapping"),
    ],
    ids=str,
)
def test_a_start_that_does_not_fit_is_told_in_one_line(starts: Any, problem: str) -> None:
    with pytest.raises(SubspaceError, match=problem) as caught:
        SubspaceConfig(formula="W + s * A @ diag(d) @ B", r=2, starts=starts)
    assert "\n" not in str(caught.value)


# Drawn formulas: whatever a config accepts starts at W, plans, and has a gradient

_TERM = st.sampled_from(
    [
        "A @ B",
        "A @ D @ B",
        "A @ G @ B",
        "C * E",
        "(A @ B) * C",
        "W * C",
        "W @ R",
        "K @ W",
        "tanh(C)",
        "relu(C)",
        "I @ C",
    ]
)
_FRAME = st.sampled_from(["W", "D1 @ W", "W @ D2", "I @ W", "t * W", "D1 @ W @ (I + X)", "(I - diag(g)) @ W"])
_SCALE = st.sampled_from(["", "s * ", "t1 * ", "0.5 * ", "(1 - t1) * ", "-2 * ", "(s + t1) * "])


@settings(max_examples=80, deadline=None)
@given(frame=_FRAME, terms=st.lists(st.tuples(_SCALE, _TERM), max_size=2), rank=st.integers(1, 3))
def test_what_a_config_accepts_starts_at_w_and_moves(frame: str, terms: list[tuple[str, str]], rank: int) -> None:
    text = " + ".join([frame, *(f"{scale}({term})" for scale, term in terms)])
    try:
        config = SubspaceConfig(formula=text, r=rank)
    except SubspaceError:
        return
    formula = config.resolved.formula
    assert parse(str(formula)) == formula
    for training in (True, False):
        assert plan(formula, Sizes(7, 5, rank), training).stages
    assert start_problem(config.resolved, rank) is None
