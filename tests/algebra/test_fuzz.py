"""Whatever text is given: it is refused in one line, or it is a formula that prints as what it reads."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from subspace_tuning.algebra import parse
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import from_formula

from ..grammar import Grammar

MOST_SECONDS = 5.0  # of the processor for one text: nothing may blow up
TOKENS = (
    "W W W A B D1 D2 R s t b I U S V U_r S_r V_r rest N M Delta A0 A1_0 A10 sigma delta relu tanh unit gate diag kron"
    " affine reflect @ @ @ * * + + - - ( ( ( ) ) ) , .T .T . / // ** % ~ not and or in is if else lambda : := = == < ["
    " ] { } ' \" 0 1 2 0.5 -1 1e-300 1e300 1e999 0x1f 1_000 2j True None nan inf _ __ é ∂ ² \\ # ; \n \t \r \x00 \u2028"
    " \ufeff $ ? ! ` 😀"
).split(" ")

# What was hard once: (text, whether it is a formula).
EXAMPLES = {
    "W @ I + A @ B": True,
    "I @ W + A @ B": True,
    "W + A @ B @ I": True,
    "W + (1 - 0.5) * A @ B": True,
    "W + (1 + 1) * A @ B": True,
    "W + gate(s * L) * Delta": True,
    "W + gate(t * W)": True,
    "W + s * affine(C, b) @ B": True,
    "W @ (I + I * A)": True,
    "D @ unit((W + s * A @ B).T).T": True,
    "-(2 * W)": True,
    "W + tanh(-(2 * A @ B))": True,
    "(D1 - D2) @ -W": True,
    "-1 * D1 @ (-2 * W)": True,
    "1e999 * W": False,
    "False * W": False,
    "True * W": False,
    "W" + ".T" * 494: True,
    "W*" * 250 + "W": True,
    "2*" * 499 + "W": True,
    "W" + "+W" * 1000: True,
    "W" + "+W" * 1001: False,
    "-" * 1000 + "W": True,
    "-" * 100_001 + "W": False,
    "(" * 150 + "W" + ")" * 150: True,
    "(" * 300 + "W" + ")" * 300: False,
    "W - " + "(W - " * 90 + "W" + ")" * 90: True,
    "W + A @ " + "(I + G @ " * 45 + "G" + ")" * 45 + " @ B": True,
    "W + A @ " + "unit(I + G @ " * 30 + "G" + ")" * 30 + " @ B": True,
    "W" + " * A @ R" * 60: False,
    "W" + " * A @ R" * 45: True,
    "W + " + "tanh(" * 200 + "W" + ")" * 200: False,
    "(1 + (2 + t + 3)) * W": True,
    "W @ (I + (I - (t * I - D)))": True,
    "W @ (K * (I * I))": True,
    "W + A @ B + A @ B - A0 @ B0": True,
    "(U_r + U_r) @ S_r @ V_r.T - U_r @ S_r @ V_r.T + W": True,
    "affine(W, em) @ affine(D2, em + delta)": True,
    "U @ S @ V.T + M * Delta @ (V @ V.T)": True,
    "diag(I) @ W": False,
    "tanh(t * I) @ W": False,
    "W + M @ A": False,
    "M * W": True,
    "W + \x00": False,
    "W +\u2028 A @\nB": True,
    "W + A if A else B": False,
    "W + (A := B)": False,
    "W + A'": False,
    "\uff37 + A @ B": True,  # Python's own normal form of the letters
    "W + ∂A": False,
    "9" * 5000 + " * W": False,
    "A" * 100_000: False,
}


def is_formula(text: str) -> bool:
    """Check the law; return whether the text is a formula."""
    begun = time.process_time()
    try:
        formula = parse(text)
    except SubspaceError as error:
        message = str(error)
        assert message.isprintable(), (text, message)
        return False
    finally:
        assert time.process_time() - begun < MOST_SECONDS, text
    printed = str(formula)
    again = parse(printed)
    assert (again, str(again)) == (formula, printed), text
    assert time.process_time() - begun < 2 * MOST_SECONDS, text
    return True


def a_text(draw: random.Random) -> str:
    joint = draw.choice(("", " "))
    return joint.join(draw.choices(TOKENS, k=draw.randint(1, 25)))


def mutated(text: str, draw: random.Random) -> str:
    """Return a formula with a few pieces taken out, doubled, replaced or moved."""
    pieces = list(text)
    for _ in range(draw.randint(1, 2)):
        start = draw.randrange(len(pieces) + 1)
        end = min(len(pieces), start + draw.randint(0, 6))
        put = draw.choice(
            (
                [],
                pieces[start:end] * 2,
                [draw.choice(TOKENS)],
                [draw.choice("@*+-().,T")],
                list(draw.choice((".T", " @ I", "(I + ", ") @ ", "-", "0 * "))),
            )
        )
        pieces[start:end] = put
    return "".join(pieces)


def fuzz(texts: int, mutations: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(texts):
        is_formula(a_text(draw))
    grammar, read = Grammar(draw), 0
    for index in range(mutations):
        text = mutated(grammar.formula(), draw)
        if not is_formula(text):
            continue
        read += 1
        if index % 10 == 0:
            with contextlib.suppress(SubspaceError):  # it trains nothing
                assert (from_formula(text).start_problem or "").isprintable(), text
    assert read > mutations / 20


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: ascii(text[:40]))
def test_what_was_hard_once(text: str) -> None:
    assert is_formula(text) == EXAMPLES[text]


def test_any_text_is_refused_in_one_line_or_a_formula() -> None:
    fuzz(2_000, 400, seed=0)


@pytest.mark.slow
def test_many_texts_are_refused_in_one_line_or_formulas() -> None:
    fuzz(30_000, 4_000, seed=1)  # some 10 ms for each refusal, which looks for a formula to suggest
