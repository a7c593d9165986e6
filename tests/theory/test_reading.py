"""Which parts of a formula are solved for: what is said of their places is true, and what has no rule is told."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import Expression, Sizes, dense, parse
from subspace_tuning.algebra.nodes import PlanNode, Product, Scale, Sparse, times
from subspace_tuning.theory import approximate, convert, reading, solve
from subspace_tuning.theory.blocks import Block, Directions, Entries
from subspace_tuning.theory.elements import assign, is_positive, trainable
from subspace_tuning.theory.problem import Problem

from ..algebra.expressions import formulas

SIZES = Sizes(7, 6, 2, 5, 2)
FORMULAS = (
    "W + (R @ W.T).T",
    "W + s * (V_r @ A).T",
    "(1 - t) * W + s * A @ B",
    "(W.T @ (D1 @ K).T).T + U_k @ diag(1 - 2 * sigma) @ V_k.T",
    "W + s * (W * (A @ B))",
    "W + (W.T * (B @ A)).T",
    "W @ (I + R + V_r @ V_r.T)",
    "W + t * (D1 @ A @ B)",
    "W + gate(L) * Delta + M * E",
    "relu(D1) @ W @ (2 * R.T)",
)


def environment_for(expression: Expression, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    env: dict[str, Any] = {"s": 0.7}
    for name, shape in parse(str(expression)).shapes.items():
        if name == "M":
            env[name] = torch.arange(SIZES.p) * 3
        elif name != "s":
            env[name] = torch.randn(SIZES.of(shape), dtype=torch.float64, generator=generator)
    return env


def blocks_of(expression: Expression) -> list[Block]:
    try:
        return reading.find_blocks(expression)
    except reading.NoRuleError:
        return []


def check_places(expression: Expression) -> None:
    """Where a block has any value, phi(W) is what its place says."""
    env = environment_for(expression)
    for block in blocks_of(expression):
        place = block.place
        constant = dense(expression, {**env, **block.zero(env)})
        moved = dict(env)
        for node in block.run:
            if trainable(node) and not isinstance(node, Sparse):
                value = torch.randn_like(node.compact(env))
                moved |= assign(node, value.abs() if is_positive(node) else value, env)
        if not constant.any() and not dense(expression, moved).any():
            continue
        factors: list[Expression] = [*place.left, *block.run, *place.right]
        whole = Product(tuple(factor for factor in factors if not factor.is_number))
        for number in (factor for factor in factors if factor.is_number):
            whole = times(number, whole)  # type: ignore[assignment]
        if place.weight is not None:
            whole = times(place.weight, whole)  # type: ignore[assignment]
        for scalar in place.scalars:
            whole = times(scalar, whole)  # type: ignore[assignment]
        added = dense(whole.T if place.flipped else whole, moved)
        torch.testing.assert_close(dense(expression, moved), constant + added, msg=f"{block} of {expression}")


@pytest.mark.parametrize("text", FORMULAS)
def test_the_places_of_known_forms_are_true(text: str) -> None:
    expression = parse(text).expression
    assert blocks_of(expression)
    check_places(expression)


def test_the_places_of_random_formulas_are_true() -> None:
    kinds: list[type[Block]] = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(formulas())
    def check(expression: Expression) -> None:
        matrix = parse(str(expression)).expression
        env = environment_for(matrix)
        if any(isinstance(node, Scale) and not node.value(env) for node in matrix.walk()):
            return  # s - s: what it multiplies has no value of its own
        if matrix.has_matrix:
            check_places(matrix)
            kinds.extend(map(type, blocks_of(matrix)))

    check()
    assert len(kinds) > 10


@pytest.mark.parametrize("text", FORMULAS)
def test_a_block_solves_its_equation(text: str) -> None:
    """W* is made by another value of the block: with all else as it is, the block comes to it."""
    expression = parse(text).expression
    env = environment_for(expression)
    for block in blocks_of(expression):
        moved = dict(env)
        for node in block.run:
            if trainable(node) and not isinstance(node, Sparse):
                value = torch.randn_like(node.compact(env))
                moved |= assign(node, value.abs() if is_positive(node) else value, env)
        if isinstance(block, (Entries, Directions)):
            continue  # their values are chosen among W's own
        problem = Problem(dense(expression, moved))
        found = dict(env)
        for _ in range(1 if block.closed else 20):
            constant = dense(expression, {**found, **block.zero(found)})
            found |= block.solved(block.place.equation(problem, constant, found), found, problem)
        tolerance = 1e-9 if block.closed else 1e-3
        assert problem.error(dense(expression, found)) < tolerance * problem.norm, block


# What has no rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("W + kron(A, B)", "no rule for kron(A, B)"),
        ("reflect(A) @ W", "reflect(A) is not linear in A"),
        ("W + tanh(A) @ B", "tanh(A) is not linear in A"),
        ("D1 @ W + D1 @ A @ B", "D1 occurs in several places"),
        ("t * (W + A @ B)", "t multiplies more than the blocks of W + A @ B"),
        ("W + W * (A @ G @ B)", "no rule for A @ G @ B beside W"),
        ("W + D1 @ (M * Delta)", "no rule for M * Delta within a product"),
    ],
)
def test_what_has_no_rule_is_told(text: str, reason: str) -> None:
    with pytest.raises(reading.NoRuleError, match=re.escape(reason)):
        reading.find_blocks(parse(text).expression)


def test_the_general_solver_is_told_of() -> None:
    W = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = approximate("W + tanh(A) @ B", W, W + 0.1 * W.square(), r=1, cache=False)
    assert (found.how, found.reason) == ("heuristic", "tanh(A) is not linear in A")
    assert approximate("lora", W, W, r=1, cache=False).reason is None


def test_every_node_has_a_rule_or_is_known_to_have_none() -> None:
    """A new node is solved by the general optimiser; who adds one decides here that it shall be."""

    def below(kind: type[Expression]) -> set[type[Expression]]:
        return {kind, *(found for one in kind.__subclasses__() for found in below(one))}

    own = {kind for kind in below(Expression) if kind.__module__.startswith("subspace_tuning.algebra.nodes")}
    concrete = {kind for kind in own if not kind.__abstractmethods__ and not issubclass(kind, PlanNode)}
    without = {kind.__name__ for kind in concrete if kind not in reading._within.registry}
    leaves = {"Matrix", "Diagonal", "Vector", "Scalar", "Normalisation", "Number", "Identity"}
    free = {"Diag", "Elementwise"}  # as a whole, see `elements`
    plans = {"Norms", "InverseNorms", "Carried", "Drawn", "Folded"}
    assert without - leaves - free - plans == {"Activation", "Affine", "Gate", "Kron", "Kronecker", "Reflect", "Unit"}


# What once went wrong


@pytest.mark.parametrize(
    ("text", "equal"),
    [
        ("(R @ W.T).T", "W @ R"),
        ("W + (V_r @ A).T", "W + A @ V_r.T"),
        ("(1 - t) * W", "t * W"),
        ("W + (1 - 2 * t) * W", "t * W"),
        ("W @ (I + R)", "W @ R"),
        ("W + diag(1 - 2 * u) @ W", "D1 @ W"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_forms_of_one_family_come_equally_near(text: str, equal: str, weighted: bool) -> None:
    W = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W_star = W + 0.5 * torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X = torch.randn(20, 9, dtype=torch.float64) if weighted else None
    one, other = (approximate(form, W, W_star, r=2, activations=X, cache=False) for form in (text, equal))
    assert (one.how, other.how) == ("exact", "exact")
    assert one.relative_error == pytest.approx(other.relative_error, rel=1e-9)


def test_the_general_solver_keeps_the_scales_behind_a_normalisation() -> None:
    W = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W_star = W @ torch.diag(torch.linspace(1, 3, 5).double())
    found = approximate("unit(W + t * tanh(A) @ B) @ D", W, W_star, r=1, cache=False)
    assert found.reason is not None
    assert found.relative_error < 1e-6


@pytest.mark.parametrize("text", ["W + A @ B", "W + 2 * A @ B", "W - 0.5 * s * A @ B", "W + s * A @ B"])
def test_a_conversion_knows_the_numbers_of_the_formula(text: str) -> None:
    source, target = methods.get("lora"), methods.from_formula(text)
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((8, 2), (2, 6)))
    found = convert(source, target, Sizes(8, 6, 2, 0, 0), {"A": A, "B": B, "s": 1.5}, r=2, scale=1.3)
    W = torch.zeros(8, 6, dtype=torch.float64)
    env = {**found.parameters, "s": found.scale, "W": W}
    torch.testing.assert_close(dense(target.formula.expression, env), 1.5 * A @ B)


# Scales whose effects nearly cancel


def images(angle: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sides between which the first two entries of a diagonal move nearly the same."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((8, 5), (5, 7)))
    left[:, 1] = left[:, 0] + angle * left[:, 1]
    right[1] = right[0] + angle * right[1]
    return left, right


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6, 1e-7, 1e-8])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_nearly_collinear_directions_count(angle: float, noise: float) -> None:
    for seed in range(3):
        left, right = images(angle, seed)
        x = torch.tensor([1.0 / angle, -1.0 / angle, 1.0, 2.0, -1.0], dtype=torch.float64)
        target = (left * x) @ right + noise * torch.randn(8, 7, dtype=torch.float64)
        found = solve.diagonal(target, left, right, torch.zeros(5, dtype=torch.float64))
        columns = torch.stack([torch.outer(left[:, i], right[i]).flatten() for i in range(5)], 1)
        best = torch.linalg.lstsq(columns, target.flatten().unsqueeze(1), rcond=1e-17, driver="gelsd").solution[:, 0]
        error, least = (float(((left * one) @ right - target).norm()) for one in (found, best))
        assert error <= least * (1.0 + 1e-6) + 1e-15 / angle * float(target.norm())


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6, 1e-8])
def test_nearly_collinear_directions_count_for_scales_that_are_not_negative(angle: float) -> None:
    from scipy.optimize import nnls

    for seed in range(3):
        left, right = images(angle, seed)
        x = torch.tensor([1.0 + 0.1 / angle, 1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
        target = (left * x) @ right
        found = solve.diagonal(target, left, right, torch.zeros(5, dtype=torch.float64), positive=True)
        columns = torch.stack([torch.outer(left[:, i], right[i]).flatten() for i in range(5)], 1)
        least = nnls(columns.numpy(), target.flatten().numpy())[1]
        assert found.min() >= 0.0
        assert float(((left * found) @ right - target).norm()) <= least + 3e-8 * float(target.norm())
