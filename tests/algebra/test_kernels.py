"""The kernel is the pattern: same values, same gradients, of any order, under every transform, in every precision."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subspace_tuning.algebra import Sizes, parse, plan
from subspace_tuning.algebra.evaluate.kernels import Parts, composed, narrow, scaled_low_rank
from subspace_tuning.algebra.nodes import NONLINEARITIES
from subspace_tuning.algebra.rows import scale_rows

FUNCTIONS = (None, "relu", "gelu", "silu", "tanh")
# Which parts there are; a function or a scale around the sum needs a low-rank term, norms are those of a whole matrix.
FORMS = [
    (bias, left, right, low, around, unit, function)
    for bias, left, right, low, around, unit in itertools.product((False, True), repeat=6)
    for function in FUNCTIONS
    if (low or not (around or function)) and not (unit and (function or (low and not around)))
]


def parts_of(form: tuple[Any, ...], n: int, m: int, k: int, dtype: torch.dtype = torch.float64) -> Parts:
    bias, left, right, low, around, unit, function = form
    terms = 0 if not low else 1 if function else 2 if right else 1

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype).requires_grad_()

    return Parts(
        torch.randn(m, n, dtype=dtype).T,
        draw(m) if bias else None,
        draw(n) if left else None,
        draw(m) if right else None,
        tuple(draw(n, k) for _ in range(terms)),
        tuple(draw(k, m) for _ in range(terms)),
        function,
        -0.7 if low else 1.0,
        around,
        unit,
    )


def tensors(x: Tensor, parts: Parts) -> list[Tensor]:
    return [value for value in (x, *parts[1:4], *parts.lows, *parts.highs) if value is not None]


def by_hand(x: Tensor, parts: Parts) -> Tensor:
    weight, bias, left, right, lows, highs, function, scale, around, unit = parts
    y = (x if left is None else x * left) @ weight
    outer = torch.ones(()) if right is None else right
    if unit:
        matrix = (weight if left is None else left.unsqueeze(1) * weight).detach()
        for low, high in zip(lows, highs, strict=True):
            matrix = matrix + scale * (low @ high).detach()
        outer = outer / matrix.norm(dim=0)
    added = torch.zeros(())
    for low, high in zip(lows, highs, strict=True):
        t = x @ low
        added = added + scale * (t if function is None else NONLINEARITIES[function](t)) @ high
    y = (y + added) * outer if around else y * outer + added
    return y if bias is None else y + bias


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sets(st.integers(0, 6), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_values_and_gradients(
    form: tuple[Any, ...], rows: int, n: int, m: int, k: int, frozen: set[int], kernel: bool, cut: bool
) -> None:
    """With any of the tensors frozen; the rows come in two dimensions or three.

    By the kernel, with narrow products cut into chunks or not, and composed of torch's operations.
    """
    parts = parts_of(form, n, m, k)
    x = torch.randn(2, rows, n, dtype=torch.float64, requires_grad=True)
    for number in frozen:
        for value in tensors(x, parts)[number : number + 1]:
            value.requires_grad_(False)
    pattern = scaled_low_rank if kernel else composed
    with mock.patch.object(narrow, "_chunks", return_value=2 if cut else 1):
        y = pattern(x, parts)
        wanted = by_hand(x, parts)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(pattern(x.detach(), parts).detach(), wanted.detach())
        settled = parts.settled(torch.float64)
        torch.testing.assert_close(pattern(x.detach(), settled).detach(), wanted.detach())
        _compare_gradients(x, parts, y, wanted)


def _compare_gradients(x: Tensor, parts: Parts, y: Tensor, wanted: Tensor) -> None:
    wanting = [tensor for tensor in tensors(x, parts) if tensor.requires_grad]
    if wanting:
        upstream = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(out, wanting, upstream) for out in (y, wanted))
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("form", [form for form in FORMS if not form[5]][:: len(FORMS) // 24], ids=str)
def test_gradients_of_gradients(form: tuple[Any, ...]) -> None:
    """All but those with norms, which are constants to the gradient and not to differences."""
    parts = parts_of(form, 4, 3, 2)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: scaled_low_rank(x, parts), tensors(x, parts))
    assert torch.autograd.gradgradcheck(lambda *_: scaled_low_rank(x, parts), tensors(x, parts))


@pytest.mark.parametrize("form", FORMS[:: len(FORMS) // 24], ids=str)
def test_transforms_of_functions(form: tuple[Any, ...]) -> None:
    """torch.func and forward differentiation see plain operations."""
    parts = parts_of(form, 4, 3, 2)
    x = torch.randn(5, 4, dtype=torch.float64)
    direction = torch.randn_like(x)
    (wanted,) = torch.autograd.grad(by_hand(x.requires_grad_(), parts).square().sum(), x)
    x = x.detach()
    found = torch.func.grad(lambda rows: scaled_low_rank(rows, parts).square().sum())(x)
    torch.testing.assert_close(found, wanted)
    one_by_one = torch.func.vmap(lambda row: scaled_low_rank(row.unsqueeze(0), parts).squeeze(0))(x)
    torch.testing.assert_close(one_by_one, by_hand(x, parts))
    _, slope = torch.func.jvp(lambda rows: scaled_low_rank(rows, parts), (x,), (direction,))
    _, expected = torch.func.jvp(lambda rows: by_hand(rows, parts), (x,), (direction,))
    torch.testing.assert_close(slope, expected)


def test_large_and_odd_numbers_of_rows() -> None:
    """Products are cut into chunks and sums into tiles; neither shows, also where the rows do not divide."""
    for rows in (1, 1023, 4096):
        parts = parts_of((True, True, True, True, True, False, None), 96, 128, 4, torch.float32)
        x = torch.randn(rows, 96, requires_grad=True)
        upstream = torch.randn(rows, 128)
        ours = torch.autograd.grad(scaled_low_rank(x, parts), tensors(x, parts), upstream)
        wide = [tensor.detach().double().requires_grad_() for tensor in tensors(x, parts)]
        bias, left, right, *factors = wide[1:]
        half = len(factors) // 2
        exact = Parts(
            parts.weight.double(), bias, left, right, tuple(factors[:half]), tuple(factors[half:]), None, parts.scale
        )
        wanted = torch.autograd.grad(by_hand(wide[0], exact), wide, upstream.double())
        for own, other in zip(ours, wanted, strict=True):
            error = (own.double() - other).norm() / other.norm()
            assert error < 1e-5


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16 base"])
@pytest.mark.parametrize("form", FORMS[:: len(FORMS) // 24], ids=str)
def test_low_precision(form: tuple[Any, ...], base: torch.dtype) -> None:
    """The output is in the products' precision, the gradients in that of what they belong to; both are close."""
    parts = parts_of(form, 64, 48, 4, torch.float32)
    x = torch.randn(32, 64)
    exact = by_hand(x, parts)
    upstream = torch.randn_like(exact)
    with torch.autocast("cpu", torch.bfloat16, enabled=base is torch.float32):
        y = scaled_low_rank(x.to(base), parts._replace(weight=parts.weight.to(base)))
    assert y.dtype == torch.bfloat16
    assert (y - exact).norm() < 0.02 * exact.norm()
    trained = tensors(x, parts)[1:]
    assert y.requires_grad == bool(trained)
    if trained:
        wanted = torch.autograd.grad(exact, trained, upstream)
        found = torch.autograd.grad(y, trained, upstream.bfloat16())
        for own, other, tensor in zip(found, wanted, trained, strict=True):
            assert own.dtype == tensor.dtype
            assert (own - other).norm() < 0.1 * other.norm()  # rounded, some entries fall on relu's other side


def test_a_scale_near_one_moves_in_small_steps() -> None:
    """bfloat16 has nothing between 1 and 1.0078."""
    x = torch.rand(4096, 8).bfloat16() + 0.5
    exact = x.float().sum()
    ours = rounded = 0.0
    for scale in (1.003, 1.005, 1.012, 0.998, 0.9975):
        vector = torch.full((8,), scale)
        ours += abs(float(scale_rows(x, vector).float().sum() / exact) - scale)
        rounded += abs(float((x * vector.bfloat16()).float().sum() / exact) - scale)
    assert ours < 0.5 * rounded


def test_what_fits_the_pattern_is_found() -> None:
    fitting = {
        "D1 @ W": 1,
        "W @ D2": 1,
        "D1 @ W @ D2 + s * A @ B": 1,
        "W + s * A @ D @ B": 1,
        "W + s * (A @ B - A0 @ B0)": 2,
        "unit(W + s * A @ B) @ D": 1,
        "W + A @ relu @ B": 1,
        "(U_r + A) @ S_r @ (V_r + B).T + rest": 2,
        "affine(W, b + delta)": 0,
    }
    for text in fitting:
        stage = plan(parse(text), Sizes(384, 384, 8)).stage(2048)
        assert str(stage.fused).startswith("fused(" if fitting[text] or "D" in text else "composed("), text
    for text in (
        "U @ diag(sigma) @ V.T",
        "W + s * (W * (A @ B))",
        "W @ A @ B",
        "unit(W)",
        "W + A @ relu @ B @ relu @ C",
    ):
        stage = plan(parse(text), Sizes(384, 384, 8)).stage(2048)
        assert not str(stage.fused).startswith("fused("), text


def test_a_rank_as_large_as_the_matrix_is_formed() -> None:
    formula = parse("W + s * A @ B")
    assert str(plan(formula, Sizes(384, 384, 360)).stage(8192).fused).startswith("[")
    assert str(plan(formula, Sizes(384, 384, 8)).stage(8192).fused).startswith("fused(")


def test_few_rows_are_left_to_torch() -> None:
    """The kernel's gradient is written in Python, which costs more than it saves there."""
    assert str(plan(parse("W + s * A @ B"), Sizes(384, 384, 8)).stage(16).fused).startswith("composed(")


@pytest.mark.parametrize(
    "text",
    [
        "W + s * affine(A, a) @ relu @ affine(B, c)",
        "W + s * affine(A, a) @ relu @ B",
        "W + s * A @ relu @ affine(B, c)",
        "D1 @ W + s * affine(A, a) @ tanh @ B",
        "W + affine(A, a) @ relu @ G @ relu @ B",
    ],
)
def test_a_bias_within_an_added_term_is_kept_for_any_number_of_rows(text: str) -> None:
    formula, sizes = parse(text), Sizes(24, 18, 3)
    env: dict[str, Any] = {
        name: torch.randn(sizes.of(shape), dtype=torch.float64) for name, shape in formula.shapes.items() if shape
    } | {"s": 0.5, "b": torch.randn(18, dtype=torch.float64)}
    x = torch.randn(40, 24, dtype=torch.float64)
    wanted = formula.evaluated.apply(x, env)
    for planned in (plan(formula, sizes), plan(formula, Sizes(768, 768, 3))):
        for rows in (1, 64, 4096, 100_000):
            stage = planned.stage(rows)
            added = x @ env["W"] if planned.adds_to_base_output else 0.0
            torch.testing.assert_close(added + stage.expression.apply(x, env), wanted)
            if stage.fused is not None:
                torch.testing.assert_close(stage.fused.apply(x, env | {"b": torch.zeros(18).double()}), wanted)
