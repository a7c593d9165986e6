"""Any formula: it prints and parses, its plans are equal to it, and applying it is multiplying by its matrix."""

from __future__ import annotations

import ast
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subspace_tuning.algebra import (
    Expression,
    FormulaError,
    Identity,
    NotLinearError,
    Sizes,
    dense,
    parse,
    plan,
    relu,
    symbol,
)
from subspace_tuning.algebra.nodes import Activation, Number, Product, Scale, gate, substitute

from ..grammar import Grammar
from .expressions import formulas

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def environment_for(expression: Expression, sizes: Sizes) -> dict[str, Any]:
    shapes = parse(str(expression)).shapes
    env: dict[str, Any] = {name: torch.randn(sizes.of(shape), dtype=torch.float64) for name, shape in shapes.items()}
    moved = {f"{name}_offset": env[name] - env[f"{name}0"] for name in ("A", "B") if f"{name}0" in env}
    return env | moved | {"s": 0.7}


@quick
@given(formulas())
def test_printed_and_parsed_is_the_same(expression: Expression) -> None:
    assert parse(str(expression)).expression == expression


def test_what_is_printed_is_read_as_it_was() -> None:
    """With masks, biases, starts and all else of the grammar, and no more operations than were written."""
    grammar, count, kept = Grammar(Random(0)), 300, 0
    for _ in range(count):
        text = grammar.formula(4)
        try:
            formula = parse(text)
        except FormulaError:
            continue
        kept += 1
        assert parse(str(formula)) == formula, text
        assert operations(str(formula)) <= operations(text), text
    assert kept > 0.8 * count


def operations(text: str) -> int:
    kinds = (ast.BinOp, ast.UnaryOp, ast.Attribute, ast.Call)
    return sum(isinstance(node, kinds) for node in ast.walk(ast.parse(text)))


@quick
@given(formulas(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_every_stage_of_every_plan_is_the_formula(expression: Expression, n: int, m: int, r: int) -> None:
    formula = parse(str(expression))
    env = environment_for(expression, Sizes(n, m, r))
    x = torch.randn(3, n, dtype=torch.float64)
    wanted = expression.apply(x, env)
    for sizes in (Sizes(n, m, r), Sizes(512, 256, 8)):
        chosen = plan(formula, sizes, training=False)
        for stage in chosen.stages:
            y = stage.expression.apply(x, env)
            assert isinstance(y, torch.Tensor)
            torch.testing.assert_close(y + x @ env["W"] if chosen.adds_to_base_output else y, wanted)
            if stage.fused is not None:
                torch.testing.assert_close(stage.fused.apply(x, env), wanted)


@quick
@given(formulas())
def test_applied_is_multiplied_by_the_matrix(expression: Expression) -> None:
    env = environment_for(expression, Sizes(5, 4, 2))
    x = torch.randn(3, 5, dtype=torch.float64)
    if any(isinstance(node, Activation) for node in expression.walk()):
        with pytest.raises(NotLinearError):
            dense(expression, env)
    else:
        torch.testing.assert_close(x @ dense(expression, env), expression.apply(x, env))


@quick
@given(formulas())
def test_substituting_nothing_or_itself_changes_nothing(expression: Expression) -> None:
    assert substitute(expression, {}) == expression
    assert substitute(expression, {"A": symbol("A")}) == expression


def test_normal_form() -> None:
    A, B, W, s = map(symbol, ("A", "B", "W", "s"))
    assert (A @ B) @ W.T == A @ (B @ W.T) == Product((A, B, W.T))
    assert s * A @ B == s * (A @ B) == A @ (s * B) == A @ B * s
    assert isinstance(s * A @ B, Scale)
    assert W + (A @ B + W) == W + A @ B + W
    assert W - (A @ B - W) == W - A @ B + W
    assert W.T.T == W
    negative = -W
    assert -negative == W
    assert str(s * A @ relu @ B) == "s * A @ relu @ B"
    assert Scale((Number(2.0),), W) == 2 * W


def test_identity_fits_every_size() -> None:
    env = {"W": torch.randn(3, 4), "D": torch.randn(4)}
    W, D = symbol("W"), symbol("D")
    torch.testing.assert_close(dense(W @ (Identity() + D), env), env["W"] * (1 + env["D"]))
    env["R"] = torch.randn(4, 4)
    torch.testing.assert_close(dense(W @ (Identity() + symbol("R")), env), env["W"] @ (torch.eye(4) + env["R"]))


def test_sparse_entries() -> None:
    formula = parse("W + M * Delta")
    env = {"W": torch.zeros(2, 3), "M": torch.tensor([1, 5]), "Delta": torch.tensor([7.0, 9.0], requires_grad=True)}
    matrix = dense(formula.expression, env)
    assert matrix.tolist() == [[0, 7, 0], [0, 0, 9]]
    matrix.sum().backward()
    assert env["Delta"].grad is not None


def test_column_norms_of_a_zero_column_are_one() -> None:
    formula = parse("unit(W) @ D")
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    matrix = dense(formula.expression, {"W": weight, "D": torch.tensor([10.0, 1.0])})
    assert matrix.tolist() == [[6.0, 0.0], [8.0, 0.0]]


def test_plans_choose_by_size() -> None:
    formula = parse("U @ diag(sigma) @ V.T")
    few, many = (plan(formula, Sizes(768, 768, 8)).stage(rows).expression for rows in (1, 8192))
    assert str(few) == "U @ diag(sigma) @ V.T"
    assert str(many).startswith("[")


def test_plans_choose_by_device() -> None:
    formula = parse("D1 @ W @ D2 + s * A @ B")
    cpu, gpu = (plan(formula, Sizes(768, 768, 8), device=device) for device in ("cpu", "cuda"))
    assert plan(formula, Sizes(768, 768, 8)) == cpu
    # A launch from Python costs a GPU as much as many products, so the kernel pays from more rows on.
    assert str(cpu.stage(1024).fused).startswith("fused(")
    assert not str(gpu.stage(256).fused).startswith("fused(")


def test_training_draws_gates_and_evaluation_does_not() -> None:
    formula, sizes = parse("W + gate(L) * Delta"), Sizes(6, 5, 1)
    env = {name: torch.randn(6, 5) for name in ("W", "L", "Delta")}
    x = torch.eye(6)
    for training in (True, False):
        stage = plan(formula, sizes, training).stage(6)
        one, other = (stage.expression.apply(x, env) for _ in range(2))
        assert torch.equal(one, other) is not training
        assert ("drawn" in str(stage.expression)) is training
    torch.manual_seed(0)
    drawn = torch.stack([dense(gate(symbol("L")).drawn(), env) for _ in range(200)])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert (drawn == 0).any()
    assert (drawn == 1).any()
    assert formula.evaluated.drawn().drawn() == formula.evaluated.drawn()
    plain = parse("unit(W + s * A @ relu @ B) @ D").evaluated
    assert plain.drawn() == plain


def test_dropout_acts_on_added_terms_alone() -> None:
    for text, wanted in {
        "W + s * A @ B": "dropout((s * A) @ B)",
        "D1 @ W @ D2 + s * A @ B": "D1 @ W @ D2 + dropout((s * A) @ B)",
        "D1 @ W": "D1 @ W",
        "unit(W + s * A @ B) @ D": "unit(W + dropout((s * A) @ B)) @ D",
        "W + A @ relu @ B": "dropout(A @ relu @ B)",
    }.items():
        assert str(plan(parse(text), Sizes(64, 64, 4), dropout=0.1).stage(1).expression) == wanted
