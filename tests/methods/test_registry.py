"""Declaring methods, and what is refused."""

from __future__ import annotations

import pytest

from subspace_tuning import SubspaceError, methods
from subspace_tuning.algebra import Sizes, relu
from subspace_tuning.methods import method
from subspace_tuning.methods.counts import polynomial
from subspace_tuning.methods.registry import categorise

TWELVE = "ssl ssb ia3 sam_parser bitfit lora trilora flora dora svdiff spectral parallel_adapter".split()


def test_the_catalogue() -> None:
    assert {known.name for known in methods.every()} >= set(TWELVE)
    for name in TWELVE:
        known = methods.get(name)
        assert known.description
        assert known.citation.startswith("arXiv:")
        assert known.count
        assert categorise(known.formula) == known.category


@pytest.mark.usefixtures("registry")
def test_a_method_is_one_declaration() -> None:
    @method(count="n + r * (n + m)")
    def scaled_lora(W, D1, A, B, s):
        """Scale the inputs and add a low-rank term."""
        return D1 @ W + s * A @ B

    known = methods.get("scaled_lora")
    assert known is scaled_lora
    assert str(known.formula) == "D1 @ W + s * A @ B"
    assert known.category == "combination"
    assert known.starts_for() == {"D1": "ones", "A": "kaiming_uniform", "B": "zeros"}
    with pytest.raises(SubspaceError, match="already exists"):
        method(name="scaled_lora")(lambda W, D1: D1 @ W)
    method(name="scaled_lora", replace=True)(lambda W, D1: D1 @ W)
    assert str(methods.get("scaled_lora").formula) == "D1 @ W"


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(SubspaceError, match="unknown method 'lroa'; did you mean lora"):
        methods.get("lroa")
    with pytest.raises(SubspaceError, match="unknown start 'kaiming'; did you mean kaiming_uniform"):
        methods.from_formula("W + A @ B", {"A": "kaiming"})
    with pytest.raises(SubspaceError, match="a start is given for 'C'"):
        methods.from_formula("W + A @ B", {"C": "zeros"})
    with pytest.raises(SubspaceError, match="takes numbers"):
        methods.from_formula("W + A @ B", {"A": "normal(x)"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("W * (A @ B)", "is not W at its start"),
        ("A @ B @ W", "is not W at its start"),
        ("relu(W @ D2)", "is not W at its start"),
    ],
)
def test_a_formula_without_a_start_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SubspaceError, match=problem):
        methods.from_formula(text).check_start()


def test_a_start_that_a_person_gives() -> None:
    methods.from_formula("W + s * A @ B", {"A": "zeros", "B": "orthogonal"}).check_start()
    with pytest.raises(SubspaceError, match="is not W at its start"):
        methods.from_formula("W + s * A @ B", {"B": "normal(0.1)"}).check_start()
    with pytest.raises(SubspaceError, match="no trainable factor"):
        methods.from_formula("W + W")


def test_own_nonlinearity() -> None:
    own = methods.from_formula("W + A @ silu @ B")
    assert own.category == "extension"
    assert str(own.formula) == str(methods.from_formula(str(own.formula)).formula)
    assert str(relu) == "relu"


@pytest.mark.parametrize(("text", "value"), [("r * (n + m)", 90), ("k", 10), ("2 * n - m + r ** 2", 9), ("7", 7)])
def test_counts_are_polynomials(text: str, value: int) -> None:
    assert polynomial(text, Sizes(10, 20, 3)) == value


@pytest.mark.parametrize("text", ["n / 2", "x", "__import__('os')", "n if m else r", "'n'"])
def test_nothing_else_is_a_count(text: str) -> None:
    with pytest.raises(SubspaceError, match="not a polynomial"):
        polynomial(text, Sizes(1, 1, 1))


@pytest.mark.usefixtures("registry")
def test_a_function_says_what_a_string_says() -> None:
    @method
    def halved(W, A, B, t):
        """A difference of numbers, and a division."""
        return W + (1 - t) * A @ B / 2

    @method(name="summed")
    def _summed(W, A, B, C):
        return sum([W, A @ B, C])

    assert str(halved.formula) == "W + 0.5 * (1 - t) * A @ B"
    assert str(methods.get("summed").formula) == "W + A @ B + C"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda W, A: 1, "returns int"),
        (lambda W, *A: W, "not a name"),
        (lambda W, A, s=2: W + A, "has a default"),
        (lambda W, A, B: W + A, "does not use the parameter B"),
        (lambda W, keys: W + keys, "attribute of torch.nn.ParameterDict"),
        (lambda W, A, B: W @ (1 + A @ B), "a number"),
        (lambda W, A: W + "A", "without quotes"),
        (lambda W, A: W @ 2, "@ takes a matrix"),
        (lambda W, A: A / 0 + W, "divided by 0"),
        (lambda W, A: W + float("inf") * A, "not a finite number"),
    ],
)
def test_a_function_that_is_no_formula_is_told_in_one_line(function, problem: str) -> None:
    with pytest.raises(SubspaceError, match=problem) as caught:
        method(function)
    assert "\n" not in str(caught.value)


def test_a_taken_name_tells_the_way_out() -> None:
    with pytest.raises(SubspaceError, match="replace=True"):
        method(name="lora")(lambda W, D1: D1 @ W)
    with pytest.raises(SubspaceError, match="did you mean lora"):
        methods.get("LoRA")
