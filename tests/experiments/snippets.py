"""The snippets of a page of documentation: found as Markdown, run in order, in one namespace."""

from __future__ import annotations

import contextlib
import doctest
import io
import itertools
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

CODE, SHELL, SHOWN = {"python", "pycon"}, {"sh", "bash"}, {"text", "yaml"}
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Fence(NamedTuple):
    """A fenced block: its language, its text, the line of the page on which the text begins (from 0)."""

    kind: str
    text: str
    line: int


def fences(page: Path) -> list[Fence]:
    """Return the fenced blocks of a page."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Fence(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens
        if token.type == "fence" and token.map is not None
    ]


def commands(fence: Fence) -> Iterator[list[str]]:
    """Yield the words of each line of a shell snippet, without comments."""
    for line in fence.text.splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_python(page: Path, names: dict[str, Any]) -> int:
    """Run the Python of a page in one namespace, and compare what it prints with what stands there.

    What a snippet with prompts prints stands in it, what another one prints in the ``text`` block behind it, where
    "..." stands for anything.

    Returns:
        How many snippets ran.
    """
    found = fences(page)
    for number, fence in enumerate(found):
        if fence.kind not in CODE:
            continue
        if fence.text.startswith(">>> "):
            _run_prompts(page, fence, names)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * fence.line + fence.text, str(page), "exec", dont_inherit=True), names)
        if printed.getvalue():
            behind = found[number + 1] if number + 1 < len(found) else None
            assert behind is not None and behind.kind == "text", f"{page.name}, line {fence.line}: {printed.getvalue()}"
            same = doctest.OutputChecker().check_output(behind.text, printed.getvalue(), _FLAGS)
            assert same, f"{page.name}, line {fence.line} prints\n{printed.getvalue()}"
    return sum(fence.kind in CODE for fence in found)


def _run_prompts(page: Path, fence: Fence, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(fence.text, {}, page.stem, str(page), fence.line)
    test.globs = names  # the page's own, where a doctest would take a copy
    told: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append, clear_globs=False).failed
    assert test.examples and failed == 0, "".join(told)


def placed(words: list[str], stand_in: Callable[[str, str], str]) -> list[str]:
    """Return a command with other words in place of those that a reader replaces; each sees the word before it."""
    return [words[0], *(stand_in(word, before) for before, word in itertools.pairwise(words))]
