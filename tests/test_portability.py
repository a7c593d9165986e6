"""Nothing that only one operating system has is asked for on import, and every text file is UTF-8."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}
TEXT = {"read_text", "write_text"}


def _calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_text_is_read_and_written_as_utf8() -> None:
    for path in SOURCES:
        for call in _calls(path):
            if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT:
                assert any(word.arg == "encoding" for word in call.keywords), f"{path}:{call.lineno}"


def test_modules_of_one_system_are_imported_where_they_may_be_missing() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX & set(names), f"{path}:{node.lineno}"


def test_what_is_synchronised_is_open_for_writing() -> None:
    """Windows refuses to flush a file that is open for reading."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.With):
                continue
            flushed = any(isinstance(one, ast.Attribute) and one.attr == "fsync" for one in ast.walk(node))
            opened = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            for call in opened if flushed else ():
                modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
                assert any(set(str(mode)) & set("wa+") for mode in modes), f"{path}:{node.lineno}"


def test_the_peak_of_memory_is_known_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    from subspace_tuning.provenance import peak_memory

    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() > 1
