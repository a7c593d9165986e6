"""Conversions: exact where both forms reach the same matrix, else as near as rank and formula allow, or refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from subspace_tuning import methods
from subspace_tuning.algebra import Sizes, dense
from subspace_tuning.algebra.nodes import Affine
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import Method, environment, initial_factors
from subspace_tuning.theory import Change, Conversion, change_of, convert
from subspace_tuning.theory.change import summed
from subspace_tuning.theory.convert import factored, is_low_rank

N, M, RANK, SCALE = 12, 9, 3, 1.3
LINEAR = [one for one in methods.every() if one.formula.is_linear and not one.formula.wraps_norm]
NO_BIAS = [one for one in LINEAR if not one.formula.names_bias]
UNEQUAL = list({str(one.formula): one for one in NO_BIAS}.values())  # one method of each formula
LOW_RANK = [one for one in LINEAR if is_low_rank(one)]


def names(case: object) -> str | None:
    return case.name if isinstance(case, Method) else None


def weight() -> Tensor:
    return torch.randn(N, M, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sizes(case: Method) -> Sizes:
    return Sizes(N, M, RANK, 9 if case.formula.masked else 0, 2 if case.formula.chooses_directions else 0)


def made(case: Method, W: Tensor) -> dict[str, Any]:
    torch.manual_seed(1)
    own = sizes(case)
    factors = initial_factors(case, W, RANK, random=True, scale=SCALE, entries=own.p, directions=own.q)
    return dict(environment(case, W, factors.parameters, factors.constants, SCALE, torch.zeros(M).double()))


def phi(case: Method, env: dict[str, Any]) -> Tensor:
    expression = case.formula.evaluated
    return dense(expression.matrix if isinstance(expression, Affine) else expression, env)


def converted(case: Method, found: Conversion, W: Tensor) -> Tensor:
    """phi(W) of a conversion, from what an adapter would hold."""
    own = sizes(case)
    started = initial_factors(case, W, found.r, scale=found.scale, entries=own.p, directions=own.q)
    env: dict[str, Any] = dict(environment(case, W, found.parameters, started.constants | found.constants, found.scale))
    return phi(case, env)


def test_the_low_rank_methods_are_known() -> None:
    assert {one.name for one in LOW_RANK} == {"lora", "trilora", "flora", "moslora", "adalora", "flexlora"}


@pytest.mark.parametrize("target", UNEQUAL, ids=names)
@pytest.mark.parametrize("source", UNEQUAL, ids=names)
def test_the_error_is_told(source: Method, target: Method) -> None:
    W = weight()
    env = made(source, W)
    found = convert(source, target, sizes(source), env, weight=W)
    change = phi(source, env) - W
    lost = float(torch.linalg.vector_norm(phi(source, env) - converted(target, found, W)) / change.norm())
    assert found.error == pytest.approx(lost, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("source", "target"), itertools.product(LOW_RANK, LOW_RANK), ids=names)
def test_forms_of_a_low_rank_term_are_equal(source: Method, target: Method) -> None:
    """The paper's equivalence of A @ B, A @ D @ B and A @ G @ B: from the factors alone, to rounding."""
    W = weight()
    env = made(source, W)
    found = convert(source, target, sizes(source), env)
    assert found.error < 1e-12
    assert torch.allclose(converted(target, found, W), phi(source, env), atol=1e-10)
    assert found.r == RANK


@pytest.mark.parametrize(
    ("source", "target"), [("ssl", "ssb"), ("ia3", "ssb"), ("lora", "trilora"), ("trilora", "flora")]
)
def test_declared_inclusions_keep_the_numbers(source: str, target: str) -> None:
    W, one, other = weight(), methods.get(source), methods.get(target)
    env = made(one, W)
    found = convert(one, other, sizes(one), env)
    assert (found.how, found.error) == ("renamed", 0.0)
    assert torch.allclose(converted(other, found, W), phi(one, env), atol=1e-12)


@pytest.mark.parametrize("source", LOW_RANK, ids=names)
def test_a_lower_rank_is_the_best_one(source: Method) -> None:
    W = weight()
    env = made(source, W)
    values = torch.linalg.svdvals(phi(source, env) - W)
    for r in (1, 2):
        found = convert(source, methods.get("lora"), sizes(source), env, r=r)
        assert found.error == pytest.approx(float(values[r:].norm() / values.norm()), abs=1e-10)


@pytest.mark.parametrize("source", LINEAR, ids=names)
def test_a_change_is_phi_less_the_weight(source: Method) -> None:
    W = weight()
    env = made(source, W)
    change = change_of(source, sizes(source), env)
    if change is not None:
        assert torch.allclose(change.matrix, phi(source, env) - W, atol=1e-10)
        U, S, V = change.svd()
        assert torch.allclose((U * S) @ V.T, change.matrix, atol=1e-10)
    assert (change is not None) == (
        source.name in {*(one.name for one in LOW_RANK), "pissa", "milora", "spectral", "lora_dash", "hra"}
    )


def test_a_change_that_needs_w_is_none_without_it() -> None:
    hra = methods.get("hra")
    env = made(hra, weight())
    assert change_of(hra, sizes(hra), env | {"W": env["W"].to("meta")}) is None


def test_a_sum_of_changes_is_no_sum_of_factors() -> None:
    W = weight()
    lora = methods.get("lora")
    first, second = made(lora, W), made(lora, W)
    second = second | {"A": second["A"].flip(0), "B": 2 * second["B"].roll(1, 1)}
    changes = [change_of(lora, sizes(lora), env) for env in (first, second)]
    both = summed([change for change in changes if change is not None], [0.25, 0.75])
    wanted = 0.25 * (phi(lora, first) - W) + 0.75 * (phi(lora, second) - W)
    assert torch.allclose(both.matrix, wanted)
    exact = factored(lora, both, sizes(lora), None, 1.0)
    assert exact.r == 2 * RANK
    assert exact.error < 1e-12
    values = torch.linalg.svdvals(wanted)
    cut = factored(lora, both, sizes(lora), RANK, 1.0)
    assert cut.error == pytest.approx(float(values[RANK:].norm() / values.norm()))


def test_no_change_has_a_form_too() -> None:
    nothing = Change(torch.zeros(N, 2).double(), torch.zeros(M, 2).double())
    found = factored(methods.get("lora"), nothing, Sizes(N, M, 2), None, 1.0)
    assert (found.r, found.error) == (1, 0.0)
    assert not any(tensor.any() for name, tensor in found.parameters.items() if name == "B")


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("parallel_adapter", "lora", "parallel_adapter = W + A @ relu @ B is not one matrix"),
        ("lora", "parallel_adapter", "is not one matrix"),
        ("ssb", "lora", "give the base model"),
        ("lora", "dora", "give the base model"),
        ("bitfit", "lora", "no place for its change of the bias"),
    ],
)
def test_what_cannot_be_is_refused(source: str, target: str, words: str) -> None:
    one = methods.get(source)
    with pytest.raises(SubspaceError, match="cannot become") as told:
        convert(one, methods.get(target), sizes(one), made(one, weight()))
    assert words in str(told.value)
