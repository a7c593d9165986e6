"""``kron(A, B)`` on linear layers: a Kronecker product of W's shape, which rows meet factor by factor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoKrConfig, get_peft_model
from peft.tuners.lokr.layer import factorization
from torch import nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.algebra import FormulaError, Sizes, dense, parse, plan
from subspace_tuning.algebra.nodes import Kron
from subspace_tuning.algebra.shapes import split

FORMULA = parse("W + s * kron(A, B)")


@pytest.mark.parametrize(("size", "smaller"), [(1, 1), (7, 1), (12, 3), (36, 6), (768, 24), (3072, 48)])
def test_a_size_splits_near_its_root(size: int, smaller: int) -> None:
    assert split(size) == smaller
    assert Sizes(size, 5, 2).of(("n1", "n2")) == (smaller, size // smaller)


def test_its_shapes() -> None:
    assert str(FORMULA) == "W + s * kron(A, B)"
    assert {name: FORMULA.shapes[name] for name in "AB"} == {"A": ("n1", "m1"), "B": ("n2", "m2")}
    assert FORMULA.count(Sizes(12, 35, 1)) == 3 * 5 + 4 * 7
    assert parse("W + kron(A, P @ C)").shapes["C"] == ("r", "m2")
    with pytest.raises(FormulaError, match="this factor of kron is n1 x m1, not n x m"):
        parse("W + kron(W, B)")
    assert type(parse("W + s * kron(A, C1) @ G @ B").expression.children[1].children[1].children[0]) is Kron


@pytest.mark.parametrize("rows", [1, 64])
def test_every_plan_is_the_matrix(rows: int) -> None:
    env = {"W": torch.zeros(12, 35), "A": torch.randn(3, 5), "B": torch.randn(4, 7), "s": 2.0}
    env = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in env.items()}
    matrix = 2.0 * torch.kron(env["A"], env["B"])
    torch.testing.assert_close(dense(FORMULA.expression, env), matrix)
    x = torch.randn(2, rows, 12, dtype=torch.float64)
    torch.testing.assert_close(FORMULA.expression.apply(x, env), x @ matrix)
    for sizes in (Sizes(12, 35, 1), Sizes(768, 768, 8)):
        for stage in plan(FORMULA, sizes).stages:
            torch.testing.assert_close(stage.expression.apply(x, env), x @ matrix)


@pytest.mark.parametrize("second", ["B", "A @ B", "A @ D @ B", "A @ G @ B"])
@pytest.mark.parametrize("shape", [(12, 35), (7, 35), (12, 11), (7, 11)], ids=str)
def test_the_first_factor_may_act_within_the_second(second: str, shape: tuple[int, int]) -> None:
    """Every plan is the matrix with its gradients, of whatever parts the second factor is a product."""
    formula, sizes = parse(f"W + s * kron(C, {second})"), Sizes(*shape, 2)
    torch.manual_seed(0)
    env: dict[str, Any] = {"W": torch.zeros(shape[::-1], dtype=torch.float64).T, "s": 2.0}
    for name in formula.trainable:
        env[name] = torch.randn(sizes.of(formula.shapes[name]), dtype=torch.float64, requires_grad=True)
    leaves = [env[name] for name in formula.trainable]
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    wanted = x @ dense(formula.expression, env)
    target = torch.randn_like(wanted)
    gradients = torch.autograd.grad((wanted * target).sum(), leaves)
    for planned in (sizes, Sizes(768, 768, 8), Sizes(768, 768, 700)):
        for stage in plan(formula, planned).stages:
            y: Any = stage.expression.apply(x, env)
            torch.testing.assert_close(y, wanted)
            torch.testing.assert_close(torch.autograd.grad((y * target).sum(), leaves), gradients)


def test_the_first_factor_acts_where_the_rows_are_narrow() -> None:
    formula = parse("W + s * kron(C, A @ D @ B)")
    assert str(plan(formula, Sizes(768, 768, 8)).stage(128).expression) == "kron(s * C, A @ (D @ B))"
    assert str(plan(formula, Sizes(768, 768, 700)).stage(2**14).expression) == "kron(s * C, (A @ (D @ B)))"


@pytest.mark.parametrize("size", [*range(1, 130), 768, 3072, 4096, 11008, 30522])
def test_a_size_splits_as_with_peft(size: int) -> None:
    assert (split(size), size // split(size)) == factorization(size)


def test_the_matrix_is_not_formed_where_that_is_dearer() -> None:
    chosen = plan(FORMULA, Sizes(4096, 4096, 8))
    assert all("[" not in str(chosen.stage(rows).expression) for rows in (1, 128, 8192))
    assert str(chosen.stage(128).expression) == "kron(s * A, B)"


def test_it_is_lokr() -> None:
    """The same factors as in peft's LoKr give the same output; B starts at zero."""
    torch.manual_seed(0)
    base, x = nn.Linear(12, 35), torch.randn(6, 12)
    theirs = get_peft_model(nn.Sequential(base), LoKrConfig(r=64, alpha=128, target_modules=["0"], init_weights=False))
    ours = get_peft_model(
        nn.Sequential(base), SubspaceConfig(formula="W + s * kron(A, B)", r=1, alpha=2.0, target_modules=["0"])
    )
    torch.testing.assert_close(ours(x), base(x))
    factors = ours.base_model.model[0].subspace_params["default"]
    layer = theirs.base_model.model[0]
    with torch.no_grad():
        factors["A"].copy_(layer.lokr_w1["default"].T)
        factors["B"].copy_(layer.lokr_w2["default"].T)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(4, 6, 3, dtype=torch.float64), torch.randn(2, 4, 5, 5, dtype=torch.float64)),
        (nn.Embedding(12, 6, dtype=torch.float64), torch.tensor([[0, 11], [5, 5]])),
    ],
    ids=["convolution", "embedding"],
)
def test_other_kinds_of_layers_form_it(layer: nn.Module, x: torch.Tensor) -> None:
    config = SubspaceConfig(formula="W + s * kron(A, B)", r=1, target_modules=["0"])
    model = get_peft_model(nn.Sequential(layer), config)
    with torch.no_grad():
        for factor in model.base_model.model[0].subspace_params["default"].values():
            factor.normal_()
    unmerged = model(x)
    assert (unmerged - layer(x)).norm() > 1e-3
    model.merge_adapter()
    torch.testing.assert_close(model(x), unmerged)
