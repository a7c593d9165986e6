"""Explanations: what they say of a formula is so, for the whole registry and for random formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from peft import get_peft_model
from torch import Tensor, nn

from subspace_tuning import SubspaceConfig, SubspaceError, SubspaceLayer, methods
from subspace_tuning.algebra import Expression, Sizes
from subspace_tuning.methods import Method, environment, explain, initial_factors
from subspace_tuning.methods.counts import polynomial
from subspace_tuning.methods.inclusions import DECLARED, FOUND, Inclusion, contained_in, containing
from subspace_tuning.methods.rendering import brief, rendered

from ..algebra.expressions import formulas

EVERY = [known for known in methods.every() if known.citation.startswith("arXiv")]  # other tests have their own
every_method = pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
LEGAL = (
    "D1 @ W @ D2 + s * A1 @ B1",
    "D1 @ W @ D2 + t * A @ D @ B",
    "W + s * A @ G @ B + M * Delta",
    "affine(W @ D2, b + delta)",
    "U @ diag(z) @ V.T + s * A @ B",
    "W + t * A @ relu @ G @ B",
    "unit(D1 @ W + s * A @ B) @ D",
    "W @ D2 + Delta",
    "W + kron(A, B) + C @ F",
)
OWN = [methods.from_formula(text, name=text) for text in LEGAL]
N, M, RANK, ENTRIES, DIRECTIONS = 7, 5, 3, 4, 2
SIZES = (Sizes(10, 21, 3, 5, 2), Sizes(35, 12, 2, 7, 3), Sizes(6, 6, 9, 1, 1))


@every_method
def test_the_count_from_the_shapes_is_the_declared_one(case: Method) -> None:
    text = explain(case).count
    assert case.count is not None
    for sizes in SIZES:
        assert polynomial(text, sizes) == polynomial(case.count, sizes) == case.formula.count(sizes)


@pytest.mark.parametrize("case", [methods.from_formula("W + kron(A, B)"), methods.get("flora").on_axes(2)], ids=str)
def test_the_count_of_other_dimensions(case: Method) -> None:
    sizes = Sizes(36, 8, 3, window=(3, 3))
    assert polynomial(case.formula.counted, sizes) == case.formula.count(sizes)


# Inclusions


def random_environment(method: Method, weight: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    positions = torch.arange(ENTRIES)
    factors = initial_factors(
        method, weight, RANK, random=True, cache=False, entries=ENTRIES, directions=DIRECTIONS, positions=positions
    )
    bias = torch.arange(M, dtype=torch.float64)
    env: dict[str, Any] = dict(environment(method, weight, factors.parameters, factors.constants, 1.0, bias))
    return env, {name: env[name] for name in method.formula.trainable}


def fixed(value: str, like: Tensor) -> Tensor:
    if value == "0":
        return torch.zeros_like(like)
    return torch.eye(len(like)).to(like) if like.dim() == 2 else torch.ones_like(like)


def matched(wider: Method, narrower: Method, inclusion: Inclusion) -> bool:
    """Whether phi(W) of the narrower one is that of the wider one at these values, with some naming of the factors."""
    weight = torch.randn(N, M, dtype=torch.float64)
    narrow, own = random_environment(narrower, weight)
    wide, others = random_environment(wider, weight)
    x = torch.randn(4, N, dtype=torch.float64)
    wanted = narrower.formula.evaluated.apply(x, narrow)
    if not narrower.formula.names_bias and wider.formula.names_bias:
        wanted = wanted + narrow.get("b", torch.arange(M, dtype=torch.float64))
    diagonals = {name for name, value in inclusion.values.items() if value == "a diagonal"}
    wide |= {name: fixed(value, others[name]) for name, value in inclusion.values.items() if name not in diagonals}
    places = [name for name in wider.formula.trainable if name not in inclusion.values or name in diagonals]
    for chosen in itertools.permutations(places, len(own)):
        named = dict(zip(chosen, own.values(), strict=True))
        named |= {name: named[name].diag() for name in diagonals & set(named) if named[name].dim() == 1}
        if any(others[name].shape != value.shape for name, value in named.items()):
            continue
        found = wider.formula.evaluated.apply(x, wide | named)
        if torch.allclose(found, wanted):  # type: ignore[arg-type]
            return True
    return False


def substitutions() -> Iterator[tuple[Method, Inclusion]]:
    for wider in (*EVERY, *OWN):
        for inclusion in contained_in(wider):
            if inclusion.how.startswith(FOUND):
                yield wider, inclusion


def test_what_is_found_by_substitution_holds() -> None:
    found = list(substitutions())
    for wider, inclusion in found:
        assert matched(wider, methods.get(inclusion.method), inclusion), (wider.name, inclusion)
    pairs = {(wider.name, inclusion.method) for wider, inclusion in found}
    assert pairs >= {("spt", "lora"), ("lora_dash", "lora"), ("flora", "adalora"), (LEGAL[0], "lora")}


def test_a_formula_of_ones_own_contains_and_is_contained() -> None:
    told_of = {one.method: str(one) for one in explain(LEGAL[0]).contains}
    assert told_of == {
        "ia3": "found by substitution: D1 = I, B1 = 0",
        "ssl": "found by substitution: D2 = I, B1 = 0",
        "ssb": "found by substitution: B1 = 0",
        "lora": "found by substitution: D1 = I, D2 = I",
    }
    assert {one.method: one.values for one in explain("W + s * A @ B").contained}["trilora"] == {"D": "I"}
    assert [one.method for one in explain("W @ R").contained] == ["xattn"]


@every_method
def test_declared_inclusions_are_followed(case: Method) -> None:
    contained = {one.method: one for one in contained_in(case)}
    for name, values in case.includes.items():
        assert (contained[name].how, contained[name].values) == (DECLARED, values)
        for further in methods.get(name).includes:
            assert further in contained


def test_both_directions_agree() -> None:
    down = {(case.name, one.method) for case in EVERY for one in contained_in(case)}
    names = {case.name for case in EVERY}
    up = {(one.method, case.name) for case in EVERY for one in containing(case) if one.method in names}
    assert down == up
    assert len(down) > 30
    assert not any((b, a) in down for a, b in down)  # none of another form contains each other


def test_starts_that_are_subtracted_are_compared() -> None:
    assert "milora" in explain("pissa").same
    assert not {"pissa", "milora", "lora"} & {one.method for one in explain("pissa").contains}


@pytest.mark.usefixtures("registry")
def test_inclusions_through_another_method() -> None:
    methods.method(name="_wide", includes={"flora": {"C": "0"}})(lambda W, A, G, B, C, F: W + A @ G @ B + C @ F)
    found = {one.method: str(one) for one in explain("_wide").contains}
    assert found["flora"] == "declared: C = 0"
    assert found["trilora"] == "through flora"
    assert "_wide" in {one.method for one in explain("trilora").contained}


# Advice


def test_what_the_registry_could_do_without() -> None:
    found = {case.name: [(one.gone, one.serves) for one in explain(case).advice] for case in EVERY}
    assert {name: gone for name, gone in found.items() if gone} == {
        "adalora": [(("D",), "the schedule adalora and the pattern orthogonal")],
        "flexlora": [(("D",), "the schedule flexlora")],
        "flora": [(("G",), "")],
        "moslora": [(("G",), "")],
        "scaled_parallel_adapter": [(("t",), "")],
        "trilora": [(("D",), "")],
    }


# What is told


@pytest.mark.parametrize("case", [*EVERY, *OWN], ids=lambda case: case.name)
def test_lines_fit_and_nothing_is_cut(case: Method) -> None:
    found = explain(case, shape=(96, 48))
    whole = "".join(rendered(found, 10_000).split())
    for width in (40, 57, 80, 120):
        lines = rendered(found, width).splitlines()
        assert max(map(len, lines)) <= width
        assert "".join("".join(lines).split()) == whole
    assert max(map(len, rendered(found, 12).splitlines())) <= 12
    for text in (found.formula, found.latex, found.merges, *(part.name for part in found.parts)):
        assert "".join(text.split()) in whole
    assert max(map(len, brief(found, 80).splitlines())) <= 80
    assert str(found) == rendered(found)


def test_a_refused_start_is_told_first_and_the_rest_is_explained() -> None:
    found = explain("A @ B @ W")
    assert "is not W at its start" in found.problem
    assert str(found).startswith("problem ")
    assert found.count == "2 * n * r"
    assert explain("reflect(A) @ W", rank=4).problem == ""
    assert "cannot leave its start" in explain("reflect(A) @ W", rank=1).problem
    assert "never moves" in explain("W + A @ B + C @ (D - D)").problem


@pytest.mark.parametrize(
    ("what", "options", "problem"),
    [
        ("lroa", {}, "unknown method 'lroa'; did you mean lora"),
        ("prefix_tuning", {}, "is not a formula over one matrix"),
        ("W", {}, "has no trainable factor"),
        ("W + ", {}, r"'\+' has no right operand"),
        ("W + W @ W", {}, "meet"),
        (3, {}, "expected a method's name, a formula or a Method, not int"),
        ("lora", {"rank": 0}, "rank = 0"),
        ("lora", {"shape": (0, 3)}, "n = 0"),
        ("lora", {"rows": 1.5}, "rows = 1.5"),
        ("W + kron(A, C1, C2) @ B", {"shape": (10, 4)}, "not a multiple of 9"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(what: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SubspaceError, match=problem) as caught:
        explain(what, **options)
    assert "\n" not in str(caught.value)


def test_what_keeps_a_formula_from_merging() -> None:
    assert explain("parallel_adapter").merges == "no: relu acts between the factors"
    assert explain("pfeiffer").merges.startswith("no: it wraps a normalisation")
    assert explain("W + A @ tanh @ B @ gelu @ C").merges == "no: tanh and gelu acts between the factors"


def test_more_rows_and_work_cost_more() -> None:
    wide, lora = explain("W + s * A @ B + A1 @ B1").cost, explain("lora").cost
    assert wide is not None and lora is not None
    assert lora.beside_lora == 1.0 and lora.trained_beside_lora == 1.0 and lora.beside_frozen > 1.0
    assert wide.beside_lora > 1.0 and wide.trained_beside_lora == 2.0
    assert lora.multiply_adds == lora.lora_multiply_adds < wide.multiply_adds
    # Three products of r x (n + m) numbers a row: forward, and the gradients of rows and factors.
    assert lora.multiply_adds == pytest.approx(3 * 8 * (768 + 768), rel=0.05)
    assert explain("pfeiffer").cost is None


# Random formulas


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(formulas())
def test_every_formula_is_explained(node: Expression) -> None:
    try:
        method = methods.from_formula(str(node))
    except SubspaceError:
        assume(False)
    found = explain(method, shape=(N, M), rank=RANK)
    assert method.formula == methods.from_formula(found.formula).formula
    assert "None" not in str(found)
    sizes = Sizes(N, M, RANK)
    assert polynomial(found.count, sizes) == found.trained == method.formula.count(sizes)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(formulas())
def test_the_count_is_that_of_the_built_factors(node: Expression) -> None:
    try:
        config = SubspaceConfig(formula=str(node), r=RANK, target_modules=["0"], init_weights=False)
        model: Any = get_peft_model(nn.Sequential(nn.Linear(N, M)), config)
    except SubspaceError:
        assume(False)
    layer = model.base_model.model[0]
    assert isinstance(layer, SubspaceLayer)
    built = {name: tuple(tensor.shape) for name, tensor in layer.subspace_params["default"].named_parameters()}
    found = explain(str(node), shape=(N, M), rank=RANK)
    assert {part.name: part.size for part in found.parts if part.trained} == built
    assert found.trained == sum(tensor.numel() for tensor in layer.subspace_params["default"].parameters())
