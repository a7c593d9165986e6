"""``reflect(A)``: a product of Householder reflections, which rows meet without an n x n matrix."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import HRAConfig, get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError
from subspace_tuning.algebra import Sizes, dense, parse, plan
from subspace_tuning.algebra.nodes import Structure

FORMULA = parse("reflect(A) @ W")


def by_hand(V: Tensor) -> Tensor:
    product = torch.eye(len(V), dtype=V.dtype)
    for v in V.T:
        size = (v * v).sum()
        product = product @ (torch.eye(len(V), dtype=V.dtype) - 2.0 * torch.outer(v, v) / (size if size > 0 else 1.0))
    return product


def environment(n: int, m: int, r: int) -> dict[str, Any]:
    A = torch.randn(n, r, dtype=torch.float64)
    A[:, r // 2] = 0.0  # reflects nothing
    return {"W": torch.randn(n, m, dtype=torch.float64), "A": A.requires_grad_(True)}


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 64])
def test_every_plan_is_the_product_of_reflections_with_its_gradient(r: int, rows: int) -> None:
    env = environment(9, 7, r)
    x = torch.randn(2, rows, 9, dtype=torch.float64)
    wanted = x @ by_hand(env["A"]) @ env["W"]
    target = torch.randn_like(wanted)
    (gradient,) = torch.autograd.grad((wanted * target).sum(), env["A"])
    plans = [plan(FORMULA, sizes) for sizes in (Sizes(9, 7, r), Sizes(768, 768, 8))]
    ways = [(stage.expression, chosen.adds_to_base_output) for chosen in plans for stage in chosen.stages]
    ways += [(stage.fused, False) for chosen in plans for stage in chosen.stages if stage.fused is not None]
    for expression, adds_to_base_output in ((FORMULA.expression, False), *ways):
        y: Any = expression.apply(x, env)
        y = y + x @ env["W"] if adds_to_base_output else y
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(torch.autograd.grad((y * target).sum(), env["A"])[0], gradient)
    torch.testing.assert_close(dense(FORMULA.expression, env), by_hand(env["A"]) @ env["W"])


def test_it_is_orthogonal_and_says_so() -> None:
    reflection = FORMULA.expression.children[0]
    assert Structure.ORTHOGONAL in reflection.structure
    matrix = dense(reflection, environment(9, 7, 4))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))


def test_for_many_rows_and_for_few_no_square_matrix_is_formed() -> None:
    chosen = plan(FORMULA, Sizes(4096, 4096, 8))
    assert all("[reflect" not in str(chosen.stage(rows).expression) for rows in (1, 128))


def test_beside_w_it_adds_a_low_rank() -> None:
    chosen = plan(FORMULA, Sizes(768, 768, 8))
    assert chosen.adds_to_base_output
    assert str(chosen.stage(128).expression) == "(-A) @ [folded(A) @ W]"
    assert str(chosen.stage(128).fused) == "composed(W - A @ folded(A) @ W)"
    several = plan(parse("reflect(A) @ W @ reflect(B)"), Sizes(768, 768, 8))
    assert "folded" not in str(several.stage(128).expression)  # written out, each would double the terms


def test_it_starts_at_w_and_leaves_it() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(9, 7), torch.randn(6, 9)

    def adapted(rank: int) -> Any:
        config = SubspaceConfig(formula="reflect(A) @ W", r=rank, target_modules=["0"])
        return get_peft_model(nn.Sequential(base), config)

    for rank in (4, 5):
        with pytest.warns(UserWarning, match="choose an even rank") if rank % 2 else nullcontext():
            model = adapted(rank)
        torch.testing.assert_close(model(x), base(x))
        model(x).square().sum().backward()
        gradient = model.base_model.model[0].subspace_params["default"]["A"].grad
        assert (gradient.abs().amax(dim=0) > 1e-3).tolist() == [index < 4 for index in range(rank)]
    with pytest.raises(SubspaceError, match="cannot leave its start"):
        adapted(1)


def test_it_is_hra() -> None:
    """peft's HRA multiplies its reflections in the other order."""
    torch.manual_seed(0)
    base, x = nn.Linear(9, 7), torch.randn(6, 9)
    theirs: Any = get_peft_model(nn.Sequential(base), HRAConfig(r=4, target_modules=["0"], init_weights=False))
    config = SubspaceConfig(formula="reflect(A) @ W", r=4, target_modules=["0"])
    ours: Any = get_peft_model(nn.Sequential(base), config)
    with torch.no_grad():
        vectors = theirs.base_model.model[0].hra_u["default"]
        ours.base_model.model[0].subspace_params["default"]["A"].copy_(vectors.flip(1))
    torch.testing.assert_close(ours(x), theirs(x))
    before = ours(x)
    ours.merge_adapter()
    torch.testing.assert_close(ours(x), before)
