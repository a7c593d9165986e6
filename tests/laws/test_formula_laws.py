"""The laws of a formula: its start, its two evaluations, its gradient, its count, its print."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import Expression, Sizes, dense, parse, plan
from subspace_tuning.algebra.evaluate import cost
from subspace_tuning.algebra.nodes import Unit, substitute, symbol
from subspace_tuning.methods import Method, environment, initial_factors

from .registry import LINEAR, METHODS, method_id
from .weights import (
    DIRECTIONS,
    ENTRIES,
    EPSILON,
    RANK,
    SCALE,
    SHAPES,
    environment_of,
    frozen,
    norm,
    rows_of,
    sizes_of,
    split,
    weight_of,
)

every_method = pytest.mark.parametrize("case", METHODS, ids=method_id)
every_linear = pytest.mark.parametrize("case", LINEAR, ids=method_id)
SEED = 3
every_shape = pytest.mark.parametrize("shape", SHAPES)


def planned(case: Method, sizes: Sizes, rows: int, training: bool, x: Tensor, env: dict[str, Any]) -> list[Tensor]:
    """The output by torch's own operations and, where the plan has one, by the kernel."""
    chosen = plan(case.formula, sizes, training)
    stage = chosen.stage(rows)
    torch.manual_seed(SEED)  # training draws gates
    y = stage.expression.apply(x, env)
    assert isinstance(y, Tensor)
    outputs = [x @ env["W"] + y if chosen.adds_to_base_output else y]
    if stage.fused is not None:
        torch.manual_seed(SEED)
        fused = stage.fused.apply(x, env)
        assert isinstance(fused, Tensor)
        outputs.append(fused)
    return outputs


@every_method
@every_shape
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_phi_of_w_is_w_at_the_start(case: Method, shape: str, dtype: torch.dtype) -> None:
    weight, bias = weight_of(shape, dtype), torch.randn(SHAPES[shape][1]).to(dtype)
    env = environment_of(case, weight, random=False, bias=bias)
    x = rows_of(case, weight, 5)
    wanted = frozen(case, x, weight, bias)
    y = case.formula.evaluated.apply(x, env)
    torch.testing.assert_close(y, wanted, atol=EPSILON[dtype], rtol=EPSILON[dtype])


@every_linear
@every_shape
def test_applied_is_the_product_with_the_dense_matrix(case: Method, shape: str) -> None:
    env = environment_of(case, weight_of(shape), random=True)
    matrix, bias = split(case.formula, env)
    assert (matrix - env["W"]).norm() + torch.as_tensor(bias).norm() > 1e-3, "random factors must change W"
    x = torch.randn(4, len(matrix), dtype=torch.float64)
    torch.testing.assert_close(case.formula.evaluated.apply(x, env), x @ matrix + bias)


@every_method
@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 12), m=st.integers(3, 12), rows=st.integers(1, 7), big=st.sampled_from([1, 64]), data=st.data())
def test_every_plan_gives_the_same_values_and_gradients(
    case: Method, n: int, m: int, rows: int, big: int, data: st.DataObject
) -> None:
    """Plans for sizes other than the tensors' own are equal to the formula, too; so all of them are tried."""
    weight = torch.randn(n, m, dtype=torch.float64)
    env = environment_of(case, weight, random=True)
    x = rows_of(case, weight, rows).requires_grad_()
    leaves = [x, *env["leaves"].values()]
    told = Sizes(n * big, m * big, data.draw(st.integers(1, 3)), ENTRIES, DIRECTIONS)
    for training in (True, False):
        expression = case.formula.evaluated.drawn() if training else case.formula.evaluated
        torch.manual_seed(SEED)
        wanted = expression.apply(x, env)
        upstream = torch.randn_like(wanted)
        gradients = torch.autograd.grad(wanted, leaves, upstream)
        for stage in plan(case.formula, told, training).stages:
            for y in planned(case, told, stage.rows, training, x, env):
                torch.testing.assert_close(y, wanted)
                for ours, reference in zip(torch.autograd.grad(y, leaves, upstream), gradients, strict=True):
                    torch.testing.assert_close(ours, reference)


@every_linear
def test_gradient_is_autograd_of_the_dense_path(case: Method) -> None:
    env = environment_of(case, weight_of("wide"), random=True)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *env["leaves"].values()]
    for training in (True, False):
        torch.manual_seed(SEED)
        drawn = replace(case.formula, expression=case.formula.expression.drawn())
        matrix, bias = split(drawn if training else case.formula, env)
        for y in planned(case, sizes_of(env["W"]), 4, training, x, env):
            upstream = torch.randn_like(y)
            ours = torch.autograd.grad(y, leaves, upstream)
            wanted = torch.autograd.grad(x @ matrix + bias, leaves, upstream, retain_graph=True)
            for a, b in zip(ours, wanted, strict=True):
                torch.testing.assert_close(a, b)


@every_method
def test_gradient_is_the_slope(case: Method) -> None:
    """gradcheck; where norms are constants to the gradient, they are held constant for the slope, too."""
    weight = weight_of("wide")
    env = environment_of(case, weight, random=True)
    expression, norms = _with_fixed_norms(case.formula.evaluated, env)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(env["leaves"], values, strict=True))
        y = expression.apply(x, environment(case, weight, parameters, env["constants"], SCALE, norm=norm) | norms)
        assert isinstance(y, Tensor)
        return y

    x = rows_of(case, weight, 2).requires_grad_()
    leaves = [x, *env["leaves"].values()]
    assert torch.autograd.gradcheck(run, leaves)
    upstream = torch.randn(2, 11, dtype=torch.float64)
    checked = torch.autograd.grad(run(*leaves), leaves, upstream)
    for a, b in zip(torch.autograd.grad(case.formula.evaluated.apply(x, env), leaves, upstream), checked, strict=True):
        torch.testing.assert_close(a, b)


def _with_fixed_norms(node: Expression, env: dict[str, Any]) -> tuple[Expression, dict[str, Tensor]]:
    """Return the expression with each ``unit(X)`` as ``X @ D900`` and so on, and those diagonals."""
    norms: dict[str, Tensor] = {}

    def fix(part: Expression) -> Expression:
        if isinstance(part, Unit):
            name = f"D{900 + len(norms)}"
            norms[name] = 1.0 / torch.linalg.vector_norm(dense(part.node, env).detach(), dim=0)
            return fix(part.node) @ symbol(name)
        return part.rebuilt(tuple(map(fix, part.children))) if part.children else part

    return fix(node), norms


@every_method
@every_shape
def test_count_is_the_declared_formula(case: Method, shape: str) -> None:
    weight = weight_of(shape)
    factors = initial_factors(case, weight, RANK, entries=ENTRIES, directions=DIRECTIONS)
    counted = sum(tensor.numel() for tensor in factors.parameters.values())
    assert counted == case.counted(sizes_of(weight)) == case.formula.count(sizes_of(weight))
    assert set(factors.parameters) == set(case.formula.trainable)


INCLUSIONS = [(wider, name) for wider in METHODS for name in wider.includes]


@pytest.mark.parametrize(("wider", "name"), INCLUSIONS, ids=lambda case: getattr(case, "name", case))
@every_shape
def test_declared_inclusions_hold(wider: Method, name: str, shape: str) -> None:
    narrower = methods.get(name)
    env = environment_of(narrower, weight_of(shape), random=True)
    replaced = {factor: symbol(by) for factor, by in wider.includes[name].items()}
    special = substitute(wider.formula.evaluated, replaced)
    torch.testing.assert_close(dense(special, env), dense(narrower.formula.evaluated, env))


def test_the_inclusions_of_the_design_are_declared() -> None:
    assert {(wider.name, name) for wider, name in INCLUSIONS} >= {
        ("ssb", "ssl"),
        ("ssb", "ia3"),
        ("trilora", "lora"),
        ("flora", "trilora"),
    }
    ssb = parse("D1 @ W @ D2 + A @ B")
    env = environment_of(methods.get("ssb"), weight_of("tall"), random=True)
    env |= {"A": torch.zeros(11, 3, dtype=torch.float64), "B": torch.zeros(3, 6, dtype=torch.float64)}
    torch.testing.assert_close(dense(ssb.expression, env), dense(methods.get("ssb").formula.expression, env))


@every_method
def test_printed_and_parsed_again_is_the_same_formula(case: Method) -> None:
    again = parse(str(case.formula))
    assert again == case.formula
    assert again.shapes == case.formula.shapes


@every_method
def test_no_plan_costs_more_than_the_formula_as_written(case: Method) -> None:
    for sizes in (Sizes(768, 768, 8, 99, 8), Sizes(384, 1536, 4, 99, 8), Sizes(64, 32, 32, 99, 8)):
        for training in (True, False):
            chosen = plan(case.formula, sizes, training)
            if chosen.adds_to_base_output:
                continue  # there the plan leaves the product with W to the base layer
            for rows in (1, 64, 4096):
                written = cost(case.formula.evaluated, case.formula, sizes, rows, training)
                assert cost(chosen.stage(rows).expression, case.formula, sizes, rows, training) <= written * 1.0001
