"""Reading formulas: shapes and kinds come out, and a wrong one is told in one line where and why."""

from __future__ import annotations

import pytest

from subspace_tuning.algebra import FormulaError, Sizes, parse

CATALOGUE = {
    "D1 @ W @ D2": {"D1": ("n",), "D2": ("m",)},
    "U @ diag(sigma) @ V.T": {"sigma": ("k",)},
    "affine(W, b + delta)": {"delta": ("m",)},
    "W + M * Delta": {"Delta": ("p",)},
    "W + gate(L) * Delta": {"L": ("n", "m"), "Delta": ("n", "m")},
    "W + s * kron(A, C1, C2) @ G @ B": {
        "A": ("c", "r"),
        "C1": ("w1", "v1"),
        "C2": ("w2", "v2"),
        "G": ("g", "r"),
        "B": ("r", "m"),
    },
    "(I + N @ affine(A, a) @ relu @ affine(B, c)) @ N": {"A": ("m", "r"), "a": ("r",), "B": ("r", "m"), "c": ("m",)},
    "W + U_k @ diag(d) @ V_k.T": {"d": ("q",)},
    "W + s * (A @ B - A0 @ B0)": {"A": ("n", "r"), "B": ("r", "m")},
    "W + s * A @ D @ B": {"A": ("n", "r"), "D": ("r",), "B": ("r", "m")},
    "W + s * A @ G @ B": {"A": ("n", "r"), "G": ("r", "r"), "B": ("r", "m")},
    "W + s * (W * (A @ B))": {"A": ("n", "r"), "B": ("r", "m")},
    "affine(W, b) @ (I + affine(A, a) @ relu @ affine(B, c))": {
        "A": ("m", "r"),
        "a": ("r",),
        "B": ("r", "m"),
        "c": ("m",),
    },
    "W + A @ relu @ B": {"A": ("n", "r"), "B": ("r", "m")},
    "W + t * A @ gelu @ B": {"t": (), "A": ("n", "r"), "B": ("r", "m")},
    "unit(W + s * A @ B) @ D": {"A": ("n", "r"), "B": ("r", "m"), "D": ("m",)},
    "(U_r + A) @ S_r @ (V_r + B).T + rest": {"A": ("n", "r"), "B": ("m", "r")},
    "U @ relu(S + D) @ V.T": {"D": ("k",)},
    "W @ R": {"R": ("m", "m")},
}

WRONG = {
    "": "not a formula",
    "W + A @": "'@' has no right operand",
    "unit(W": "never closed",
    "D1 @ W @ A @ D1": "phi(W) must be n x m like W, but is n x n",
    "W + W.T": ">>>W + W.T<<<': the left side is n x m, the right side m x n",
    "W + s": "the right side a number",
    "W @ s": "@ takes a matrix, and this is a number",
    "U @ >>>sigma": "not a formula",
    "U @ sigma @ V.T": ">>>sigma<<<",
    "A @ B": "does not use W",
    "W @ W": "m columns meet n rows",
    "W.shape": "a matrix has .T, but no .shape",
    "W + A[0]": "without entries or slices",
    "W ** 2": "** is not an operation of the language",
    "W / t + A": "/ divides by a literal number",
    "__import__('os').system('true')": "unknown function",
    "(lambda: W)()": "only functions can be called",
    "W if W else W": "no conditions",
    "relux(W)": "did you mean relu?",
    "diag(W, W) @ W": "diag takes 1 argument",
    "affine(W)": "affine takes 2 arguments",
    "W @ diag(A)": "A is not one",
    "affine(W, s)": "s is not one",
    "diag(a) @ W @ diag(a)": "m columns meet n rows",
    "U_q @ W": "not a part of W's singular value decomposition",
    "W + A0 @ B": "frozen start of A",
    "W * M": "a mask M comes before",
    "unit @ W": "is a function",
    "affine(W, b) + a": "the right side a number",
    "True * W": "True is not a number",
    "'W'": "without quotes",
    "_W + W": "starts with a letter",
    "W" + " + W" * 1001: "at most 1000 operations",
    "W" * 70 + " + W": "at most 64 letters",
    "W + " + " " * 100_000 + "A" * 100_000: "the limit is",
    "(" * 300 + "W" + ")" * 300: "not a formula",
    "diag(b)": "phi(W)",
    "W" + ".T" * 1002: "at most 1000 operations",
    "-" * 20_000 + "W": "at most 1000 operations",
    "W" + " * A @ R" * 60: "operations are nested",
    "W + A @ " + "(I + G @ " * 51 + "G" + ")" * 51 + " @ B": "operations are nested",
    "tanh(" * 101 + "W" + ")" * 101: "operations are nested",
    "W + M @ A": "a mask M comes before",
    "W + M1 * M2 * Delta": "a mask M1 comes before",
    "tanh(t * I) @ W": "t * I has none",
    "diag(I) @ W": "a vector is expected here",
    "1e999 * W": "the number inf is not finite",
    "1e308 * 10 * W": "the number inf is not finite",
    "9" * 400 + " * W": "too large",
    "nan * W": "not a finite number",
    "False * W": "False is not a number",
    "W + keys * A @ B": "attribute of torch.nn.ParameterDict",
    "W + training * A @ B": "attribute of torch.nn.ParameterDict",
    "W + A @ values": "attribute of torch.nn.ParameterDict",
    "W + A_offset @ B": "are reserved for",
    "W + A1_0 @ B": "frozen start of A1",
    "affine(U_r, b) @ B + W": "b is the layer's bias of m numbers",
    "g * (A @ C) + W @ diag(g)": "a vector in one place and a number in another",
    "relu(I) @ W": "I has none",
    "W + \x00A": "not a formula",
    "W + (lambda x:\n x)()": "only functions can be called",
    "W +\n A @\n W @ W": "m columns meet n rows",
}


@pytest.mark.parametrize("given", [None, 3, ["W"], b"W"], ids=repr)
def test_a_formula_is_a_string(given: object) -> None:
    with pytest.raises(FormulaError, match="a formula is a string"):
        parse(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", CATALOGUE)
def test_shapes_follow_from_the_neighbours(text: str) -> None:
    formula = parse(text)
    assert str(formula) == text
    assert {name: formula.shapes[name] for name in formula.trainable} == CATALOGUE[text]


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30] or "empty")
def test_a_wrong_formula_is_told_in_one_line(text: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert WRONG[text] in message


def test_the_place_is_marked() -> None:
    with pytest.raises(FormulaError, match=r"formula 'W \+ A @ \(>>>W @ W<<<\)': m columns meet n rows"):
        parse("W + A @ (W @ W)")


def test_names_decide_what_is_trained() -> None:
    formula = parse("(U_r + A) @ S_r @ (V_r + B).T + rest")
    assert formula.trainable == ("A", "B")
    assert set(formula.spectral) == {"U_r", "S_r", "V_r"}
    assert parse("W + s * A @ B").count(Sizes(10, 20, 3)) == 3 * (10 + 20)
    assert not parse("W + A @ relu @ B").is_linear
    assert parse("affine(W, b + delta)").names_bias


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("-(2 * W)", "-2 * W"),
        ("W + tanh(-(2 * A @ B))", "W + tanh(-2 * A @ B)"),
        ("(D1 - D2) @ -W", "-(D1 - D2) @ W"),
        ("-((D1 - D2) @ W)", "-(D1 - D2) @ W"),
        ("W - -(A - C)", "W + A - C"),
        ("W - A @ -(B + C)", "W + A @ (B + C)"),
        ("W - (1 - (t + 1)) * A", "W - (0 - t) * A"),
        ("W @ (I + (I + D))", "W @ (2 * I + D)"),
        ("(1 + (2 + t + 3)) * W", "(6 + t) * W"),
        ("W @ (K * (I * I))", "W @ (K * I)"),
        ("-1 * D1 @ (-2 * W)", "2 * D1 @ W"),
        ("W - (1 - t) * A", "W - (1 - t) * A"),
        ("-((s + t) * A) + W", "-(s + t) * A + W"),
        ("W + 1e16 * A", "W + 1e+16 * A"),
        ("I @ W @ I + A @ I @ B", "W + A @ B"),
        ("W @ (I + t * I)", "(1 + t) * W"),
        ("W + (I * 2 * I) @ A", "W + 2 * A"),
        ("W + (1 - 0.5) * A @ B", "W + 0.5 * A @ B"),
        ("W +\n  A @ B", "W + A @ B"),
    ],
)
def test_printing_is_a_fixed_point(text: str, printed: str) -> None:
    formula = parse(text)
    assert str(formula) == printed
    assert parse(printed) == formula


def test_what_is_read_can_be_read_again() -> None:
    formula = parse("W" + "".join(f"+(A*B{i})@C{i}" for i in range(1, 334)))
    assert parse(str(formula)) == formula


def test_a_start_is_told_from_a_factor_by_its_name() -> None:
    assert parse("W + A1 @ B1 + A10 @ B10").trainable == ("A1", "B1", "A10", "B10")
    assert parse("W + A1 @ B1 - A1_0 @ B1_0").trainable == ("A1", "B1")
    assert parse("W + A @ B - A0 @ B0").trainable == ("A", "B")
