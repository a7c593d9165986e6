"""What a formula could do without: in float64, what is left can be all that it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from torch import Tensor

from subspace_tuning import SubspaceError, methods
from subspace_tuning.algebra import Formula, Sizes, dense, parse
from subspace_tuning.algebra.nodes import Diag, Diagonal, Expression, Matrix, Scale, Sparse
from subspace_tuning.algebra.reduce import Reduction, reductions
from subspace_tuning.methods import environment, initial_factors

from .expressions import formulas

N, M, RANK, ENTRIES, SCALE = 7, 5, 4, 6, 1.7

REDUCED = {
    "W + s * A @ G @ B": "W + s * A @ B",
    "W + t * A @ B": "W + A @ B",
    "W + t * u * A @ B": "W + A @ B",
    "W + (1 - t) * A @ B": "W + A @ B",
    "W + t * (M * Delta)": "W + M * Delta",
    "W + t * (W * (A @ B))": "W + W * (A @ B)",
    "W + t * A @ relu @ B": "W + A @ relu @ B",
    "W + A @ G @ relu @ B": "W + A @ relu @ B",
    "W + A @ relu @ D @ B": "W + A @ relu @ B",
    "W + D1 @ A @ B @ D2": "W + A @ B",
    "W + (I + C @ F) @ A @ B": "W + A @ B",
    "W + B.T @ A.T @ D": "W + B.T @ A.T",
    "D1 @ D2 @ W": "D1 @ W",
    "W @ R @ D": "W @ R",
    "W @ (R + Q)": "W @ R",
    "U @ diag(sigma) @ diag(u) @ V.T": "U @ diag(sigma) @ V.T",
    "U @ diag(u) @ S @ diag(z) @ V.T": "U @ diag(u) @ S @ V.T",
    "U @ diag(sigma + u) @ V.T": "U @ diag(sigma) @ V.T",
    "W + D @ (M * Delta)": "W + M * Delta",
    "W + M * Delta * P": "W + M * Delta",
    "W + Delta * P": "W + Delta",
    "W + Delta + s * A @ B": "W + Delta",
    "W + 2 * Delta - s * A @ B": "W + 2 * Delta",
    "D1 @ W + Delta": "W + Delta",
    "W @ D2 - Delta": "W - Delta",
    "affine(W, b + d + e)": "affine(W, b + d)",
    "W + t * kron(A, B)": "W + kron(A, B)",
    "reflect(A @ G) @ W": "reflect(A) @ W",
    "unit(W + s * A @ G @ B) @ D": "unit(W + s * A @ B) @ D",
}

WHOLE = (
    "W + s * A @ B",
    "D1 @ W @ D2 + s * A @ B",
    "t * W + A @ B",
    "t * (W + A @ B)",
    "D1 @ W + D1 @ A @ B",  # D1 is needed beside W
    "W + A @ B + A @ C",  # A stands twice
    "W @ (I + A @ G @ A.T)",
    "W + s * (A @ G @ B - A0 @ G0 @ B0)",  # the starts are there
    "W + gate(L) * Delta",  # drawn anew in training
    "W + A @ relu @ G @ relu @ B",
    "W + tanh(A @ B) @ D",
    "W + t * tanh(A @ B)",
    "unit(W) @ D",
    "W + A @ affine(G, g) @ B",
    "W @ (I + A @ B)",
    "W @ R @ Q",  # through the rank
    "(U_r + A) @ S_r @ (V_r + B).T + rest",
    "W @ (D + reflect(A))",
)


def random_environment(formula: Formula) -> dict[str, Any]:
    method = methods.from_formula(str(formula))
    weight = torch.randn(N, M, dtype=torch.float64)
    positions = torch.randperm(N * M)[:ENTRIES].sort().values
    factors = initial_factors(
        method, weight, RANK, random=True, cache=False, entries=ENTRIES, directions=2, positions=positions
    )
    return dict(environment(method, weight, factors.parameters, factors.constants, SCALE, torch.randn(M).double()))


def taken_up(kept: Expression, value: Expression, env: dict[str, Any]) -> dict[str, Tensor]:
    """Return the factor that is kept, at its value."""
    constant = 1.0
    while isinstance(kept, Scale):
        constant, kept = constant * float(kept.value(env)), kept.node
    if isinstance(kept, Sparse):
        matrix, indices = dense(value, env) / constant, env[kept.mask]
        entries = matrix.flatten()[indices]
        assert torch.equal(torch.zeros_like(matrix).flatten().index_put((indices,), entries), matrix.flatten())
        return {kept.entries: entries}
    if isinstance(kept, Matrix):
        return {kept.name: dense(value, env) / constant}
    found = value.compact(env) / constant
    (name,) = kept.names
    if isinstance(kept, (Diagonal, Diag)):
        assert value.diagonal
    return {name: found}


def check(step: Reduction, before: Formula) -> None:
    env = random_environment(before)
    x = torch.randn(4, N, dtype=torch.float64)
    wanted = before.evaluated.apply(x, env)
    found = step.formula.evaluated.apply(x, env | taken_up(step.kept, step.value, env))
    torch.testing.assert_close(found, wanted)
    assert set(step.gone) == set(before.trainable) - set(step.formula.trainable) != set()
    sizes = Sizes(N, M, RANK, ENTRIES, 2)
    assert step.formula.count(sizes) < before.count(sizes)


@pytest.mark.parametrize(("text", "left"), REDUCED.items())
def test_what_is_left_can_be_all_that_it_was(text: str, left: str) -> None:
    before, steps = parse(text), reductions(parse(text))
    assert steps
    for step in steps:
        check(step, before)
        before = step.formula
    assert str(before) == left
    assert not reductions(before)


@pytest.mark.parametrize("text", WHOLE)
def test_nothing_is_taken_from_a_formula_that_needs_all_it_has(text: str) -> None:
    assert not reductions(parse(text))


def test_a_rank_that_is_no_limit() -> None:
    formula = parse("W + s * A @ D @ B")
    steps = reductions(formula, Sizes(N, M, M))
    assert [str(step.formula) for step in steps] == ["W + s * A @ B", "W + s * Delta"]
    assert (steps[1].gone, str(steps[1].value)) == (("A", "B"), "A @ B")
    assert len(reductions(formula, Sizes(N, M, M - 1))) == 1
    env, x = random_environment(steps[0].formula), torch.randn(4, N, dtype=torch.float64)
    found = steps[1].formula.evaluated.apply(x, env | taken_up(steps[1].kept, steps[1].value, env))
    torch.testing.assert_close(found, steps[0].formula.evaluated.apply(x, env))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(formulas())
def test_random_formulas_lose_nothing(node: Expression) -> None:
    try:
        before = parse(str(node))
        methods.from_formula(str(node))
    except SubspaceError:
        assume(False)
    steps = reductions(before)
    event(f"{min(len(steps), 3)} steps")
    for step in steps:
        check(step, before)
        before = step.formula
