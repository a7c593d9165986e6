"""`subspace explain`: of a formula, in a model, as JSON, and line by line from a pipe and from a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from subspace_cli import main
from subspace_tuning import SubspaceConfig
from subspace_tuning.counting.count import count_in
from subspace_tuning.models.meta import architecture_of

Capture = pytest.CaptureFixture[str]


def told_by(capture: Capture, *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["explain", *words])
    printed = capture.readouterr()
    assert caught.value.code == code, printed.err
    return printed.out if code == 0 else printed.err


@pytest.mark.parametrize("columns", ["30", "80", "200", None])
@pytest.mark.parametrize("formula", ["houlsby", "D1 @ W @ D2 + t * A @ G @ B"])
def test_the_text_fits_the_terminal(
    formula: str, columns: str | None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    text = told_by(capsys, formula, "--shape", "768x3072")
    assert max(map(len, text.splitlines())) <= int(columns or 80)
    for label in ("formula", "LaTeX", "merges", "trained A", "count", "plan", "cost"):
        assert label in text
    assert "…" not in text


def test_in_a_model_it_counts_what_params_counts(tiny_model: Path, capsys: Capture) -> None:
    words = ("W + s * A @ G @ B", str(tiny_model), "--rank", "4")
    found = json.loads(told_by(capsys, *words, "--json"))
    counted = count_in(architecture_of(str(tiny_model)), SubspaceConfig(formula=words[0], r=4))
    assert found["model"]["trainable"] == counted.trainable > 0
    assert (found["model"]["matrices"], found["model"]["total"]) == (counted.matrices, counted.total)
    assert found["model"]["shapes"] == [[32, 32, 8], [32, 48, 2], [48, 32, 2]]
    assert (found["n"], found["m"], found["rank"]) == (32, 32, 4)
    assert found["advice"][0]["after"] == "W + s * A @ B"
    assert f"{counted.trainable:,} of {counted.total:,}" in " ".join(told_by(capsys, *words).split())


def test_masks_and_methods_by_name_in_a_model(tiny_model: Path, capsys: Capture) -> None:
    for name in ("fishmask", "sam_parser"):
        assert "in the model" in told_by(capsys, name, str(tiny_model))


def test_a_refused_start_is_explained(tiny_model: Path, capsys: Capture) -> None:
    assert told_by(capsys, "A @ B @ W").startswith("problem ")
    text = told_by(capsys, "A @ B @ W", str(tiny_model))
    assert text.startswith("problem ")
    assert f"not counted in {tiny_model}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lroa",), "unknown method 'lroa'; did you mean lora"),
        (("W + A @",), "has no right operand"),
        (("W + A @ B", "./nowhere"), "does not exist"),
        (("A @ B @ W", "./nowhere"), "does not exist"),
        (("lora", "--shape", "768"), "--shape '768' is not two numbers such as 768x3072"),
        (("lora", "--shape", "0x5"), "n = 0 is not a whole number"),
        (("lora", "--rank", "0"), "rank = 0"),
        (("lora", "minilm", "--shape", "3x4"), "a model or --shape, not both"),
        (("lora", "--watch"), "leave the formula and --json out"),
        (("--watch", "--rank", "0"), "rank = 0"),
        ((), "give a formula"),
        (("lora", "--rows", "0"), "--rows"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    text = told_by(capsys, *words, code=2)
    assert message in text
    assert text.count("\n") == 1


TYPED = "W + s * A @ G @ B\nD1 @ W @ W\nlroa\nA @ B @ W\n\nssb\n"


def test_lines_of_a_pipe(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(TYPED))
    monkeypatch.setenv("COLUMNS", "80")
    text = told_by(capsys, "--watch")
    said = " ".join(text.split())
    assert "G adds nothing to what phi(W) can be: A can be A @ G" in said
    assert ">>>D1 @ W @ W<<<" in said
    assert "unknown method 'lroa'" in said
    assert "problem phi(W) is not W at its start" in said
    assert "D1 @ W @ D2" not in said  # behind the empty line
    assert "phi(W) = \n" not in text  # no prompt in a pipe
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\x04"], ids=["empty line", "end of input"])
def test_lines_of_a_terminal(end: str) -> None:
    """Under a real terminal, without --watch: prompts, answers, and the last line called back."""
    parent, child = pty.openpty()
    command = [sys.executable, "-c", "from subspace_cli import main; main()", "explain"]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    )
    os.close(child)
    text = _until(parent, "phi(W) = ")
    os.write(parent, b"W + s * A @ B\n")
    text += _until(parent, "n * r + m * r", "phi(W) = ")
    os.write(parent, b"\x1b[A + C\n")  # the line before, called back and gone on with
    text += _until(parent, "advice", "phi(W) = ")
    os.write(parent, end.encode())
    assert process.wait(60) == 0
    os.close(parent)
    assert "W + s * A @ B + C" in text
    assert "A, B add nothing" in " ".join(text.split())


def _until(terminal: int, *texts: str) -> str:
    """Read from a terminal until the texts have come, one behind the other."""
    seen = ""
    rest = seen
    for text in texts:
        while text not in rest:
            seen += os.read(terminal, 4096).decode()
            rest = seen
        rest = rest.partition(text)[2]
    return seen
