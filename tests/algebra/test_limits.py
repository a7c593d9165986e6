"""A formula of as many operations as are read is planned and trained with work that grows as it does, at any depth."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from subspace_tuning import SubspaceConfig
from subspace_tuning.algebra import FormulaError, Sizes, parse, plan
from subspace_tuning.algebra.latex import latex

MOST, DEEPEST = 1000, 100


def repeated(first: str, part: str, operations: int) -> str:
    """Return a formula that begins with ``first`` and repeats ``part``, numbered, for so many operations."""
    count = (operations - _operations(first)) // _operations(part)
    return first + "".join(part.replace("#", str(index)) for index in range(1, count + 1))


def _operations(text: str) -> int:
    return sum(map(text.count, "+-@*(")) + text.count(".T")


CHAINS: dict[str, Callable[[int], str]] = {
    "terms": lambda k: repeated("W", " + A# @ B#", k),
    "signs": lambda k: repeated("W", " - A# @ B# + C# @ E#", k),
    "starts": lambda k: repeated("W", " + A# @ B# - A#_0 @ B#_0", k),
    "scaled": lambda k: repeated("D1 @ W", " + s * A# @ B#", k),
    "product": lambda k: repeated("W", " @ D#", k),
    "elements": lambda k: repeated("W + P", " * P#", k),
    "scalars": lambda k: repeated("W + t", " * t#", k - 2) + " * A @ B",
    "sum of scalars": lambda k: "W + (t" + repeated("", " + t#", k - 5) + ") * A @ B",
    "sum in diag": lambda k: "W @ diag(a" + repeated("", " + a#", k - 3) + ")",
    "normalised": lambda k: "unit(" + repeated("W", " + s * A# @ B#", k - 3) + ") @ D",
    "affine": lambda k: repeated("affine(W, b)", " @ affine(D#, c#)", k),
    "kron": lambda k: repeated("W", " + kron(K#, L#)", k),
    "transposes": lambda k: "D1 @ W" + ".T" * ((k - 1) // 2 * 2),
    "minus": lambda k: "W + A @ " + "-" * (k - 3) + "B",
    "brackets": lambda k: (
        repeated("(W", " + s * A# @ B#", k // 2) + ") @ (I" + repeated("", " + s * H# @ E#", k // 2 - 2) + ")"
    ),
}
NESTED: dict[str, Callable[[int], str]] = {
    "functions": lambda d: "W + A @ " + "tanh(" * (d - 3) + "G" + ")" * (d - 3) + " @ B",
    "sums": lambda d: "W + A @ " + "(I + G @ " * ((d - 3) // 2) + "G" + ")" * ((d - 3) // 2) + " @ B",
    "multiples": lambda d: "W + A @ " + "(I + t * G @ " * ((d - 3) // 3) + "G" + ")" * ((d - 3) // 3) + " @ B",
    "to the left": lambda d: "W + A @ " + "(" * ((d - 3) // 2) + "G" + " @ G + I)" * ((d - 3) // 2) + " @ B",
    "turns": lambda d: "W + A @ " + "(-((s + t) * " * ((d - 3) // 2) + "G" + ")).T" * ((d - 3) // 2) + " @ B",
    "norms": lambda d: "W + A @ " + "unit(I + G @ " * ((d - 3) // 3) + "G" + ")" * ((d - 3) // 3) + " @ B",
    "by turns": lambda d: "W + A @ B" + " * P @ R" * ((d - 4) // 2),
    "numbers": lambda d: "W + " + "(t + u * " * ((d - 4) // 2) + "t" + ")" * ((d - 4) // 2) + " * A @ B",
}


def work(text: str) -> int:
    """Return how many calls it takes to read a formula, to print it, to read that again, and to plan it."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        formula = parse(text)
        assert parse(str(formula)) == formula
        plan(formula, Sizes(64, 48, 4))
    finally:
        sys.setprofile(None)
    return count


def trained(text: str) -> Any:
    """Return a model that has gone through a step, forward and back."""
    config = SubspaceConfig(formula=text, r=2, alpha=1.0, target_modules=["0"], init_weights=False)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(6, 5)), config)
    model(torch.randn(3, 6)).sum().backward()
    assert all(factor.grad is not None for factor in model.parameters() if factor.requires_grad)
    return model


@pytest.mark.parametrize("name", CHAINS)
def test_the_work_grows_as_the_formula_does(name: str) -> None:
    work(CHAINS[name](20))  # what is computed once for all
    assert work(CHAINS[name](200)) < 2.5 * work(CHAINS[name](100))


@pytest.mark.parametrize("name", CHAINS)
def test_the_longest_formula_is_read_and_a_longer_one_is_refused(name: str) -> None:
    text = CHAINS[name](MOST)
    formula = parse(text)
    assert parse(str(formula)) == formula
    longer = CHAINS[name](MOST + 8)
    with pytest.raises(FormulaError, match="at most 1000 operations"):
        parse(longer)


def test_the_longest_formula_trains() -> None:
    trained(CHAINS["signs"](MOST))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_every_longest_formula_trains(name: str) -> None:
    trained(CHAINS[name](MOST))


@pytest.mark.parametrize("name", NESTED)
def test_the_deepest_formula_is_used_from_deep_within_a_program(name: str) -> None:
    text = NESTED[name](DEEPEST)

    def use() -> None:
        formula = parse(text)
        assert formula.expression.depth > DEEPEST - 3
        assert parse(str(formula)) == formula
        assert pickle.loads(pickle.dumps(formula)) == copy.deepcopy(formula) == formula
        assert latex(formula.expression)
        model = trained(text)
        merged = copy.deepcopy(model).merge_and_unload()
        x = torch.randn(3, 6)
        torch.testing.assert_close(merged(x), model.eval()(x), rtol=1e-3, atol=1e-3)

    def within(frames: int) -> None:
        return use() if frames == 0 else within(frames - 1)

    within(250)
    with pytest.raises(FormulaError, match="more than 100 operations are nested here"):
        parse(NESTED[name](DEEPEST + 5))
