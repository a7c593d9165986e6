"""The message of a formula that is refused: one line, the place, the reason, and a formula that then works."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_cli.refuse import drawn
from subspace_tuning import method, methods
from subspace_tuning.algebra import FormulaError
from subspace_tuning.errors import SubspaceError
from subspace_tuning.methods import Method

from .messages import ATTEMPTS, PAIRS, check_works, refusal

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-do-i-write.md"
ROW = re.compile(r"^\| `` (.+?) `` \| (.+?) \| `(.+?)`(?: with (.+?))? \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))
TOKENS = ["W", "A", "B", "D1", "s", "t", "+", "-", "*", "@", ".T", "(", ")", "unit(", "relu(", "1", " ", "I", "·", "="]
MUTATED = ["W + s * A @ B", "D1 @ W @ D2", "unit(W + s * A @ B) @ D", "U @ diag(sigma) @ V.T", "W * (1 + A @ B)"]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_every_first_attempt_is_told_what_works(attempt: str) -> None:
    error = refusal(attempt)
    assert error is not None
    assert error.suggestion is not None
    message = str(error)
    assert "\n" not in message and error.reason in message and error.suggestion in message
    start, end = error.span
    assert 0 <= start < end <= len(error.formula)
    check_works(error.suggestion, error.starts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_suggested_works(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(MUTATED))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 2))
        text = text[:place] + data.draw(st.sampled_from(["", *TOKENS])) + text[place + cut :]
    error = refusal(text)
    if error is not None:
        assert "\n" not in str(error)
        if error.suggestion is not None:
            check_works(error.suggestion, error.starts)


@pytest.mark.parametrize("text", PAIRS)
def test_strings_and_functions_say_the_same(text: str) -> None:
    def as_string() -> Method:
        own = methods.from_formula(text)
        own.check_start(rank=1)
        return own

    def as_function() -> Method:
        own = method(name="same")(PAIRS[text])
        methods.registry.unregister("same")
        return own

    string, function = _told(as_string), _told(as_function)
    assert string[:3] == function[:3]
    assert function[3] in (None, "same")


def _told(declare: Callable[[], Method]) -> tuple[str, str | None, dict[str, str], str | None]:
    """Return the formula of a method, or what its refusal says."""
    try:
        return str(declare().formula), None, {}, None
    except FormulaError as error:
        return error.reason, error.suggestion, error.starts, error.method


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda W, A, B: W if A else B, "no conditions"),
        (lambda W, A, B: W + (A and B), "no conditions"),
        (lambda W, A: W + sum(A), "not iterable"),
        (lambda W, A: W + len(A) * A, "has no len"),
        (lambda W, A: W + float(A), "must be a string or a real number"),
        (lambda W, A: W + s * A, "every name of the formula is a parameter"),  # noqa: F821
        (lambda W, A: {}["x"], "KeyError"),
        (lambda W, A: (W, A), "returns tuple"),
    ],
)
def test_what_a_function_cannot_do_names_the_method(function, reason: str) -> None:
    with pytest.raises(SubspaceError, match=reason) as caught:
        method(name="wrong")(function)
    assert str(caught.value).startswith("method 'wrong': ") and "\n" not in str(caught.value)


def test_the_page_has_what_is_told() -> None:
    assert len(ROWS) >= 30
    for attempt, told, instead, with_starts in ROWS:
        error = refusal(attempt)
        assert error is not None, attempt
        starts = ", ".join(f"{name} at {start}" for name, start in error.starts.items())
        assert (error.reason, error.suggestion, starts) == (told.replace("\\", ""), instead, with_starts), attempt
        check_works(error.suggestion or "", error.starts)


def test_a_terminal_shows_the_place_below_the_formula() -> None:
    error = refusal("W * (1 + A @ B)")
    assert error is not None
    assert (drawn(error) or "").splitlines()[1:] == [
        "  W * (1 + A @ B)",
        "       ^^^^^^^^^",
        "write 'W + W * (A @ B)'",
    ]
    wide = refusal("W + 数 @ B")
    assert wide is not None
    assert (drawn(wide) or "").splitlines()[2] == "      ^^"
    assert drawn(SubspaceError("x")) is None


def test_an_error_travels_between_processes() -> None:
    error = refusal("W + A @ relu(B)")
    assert error is not None
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error) and copied.starts == error.starts != {}
