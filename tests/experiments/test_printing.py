"""What the commands print, in every width: no name, no formula, no option is ever cut."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st

import subspace_cli
from subspace_cli import main
from subspace_cli.app import app
from subspace_cli.console import show, table_of
from subspace_tuning import __version__, methods

FILES = sorted(Path(subspace_cli.__file__).parent.glob("*.py"))
CELLS = st.text(st.sampled_from("abW@+:[]1-_ "), max_size=30).map(str.strip)


def told(*words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0


def test_the_version_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    told("--version")
    assert capfd.readouterr().out == f"subspace-tuning {__version__}\n"


@pytest.mark.parametrize("columns", ["40", "80", "120", None])
def test_names_are_never_cut(
    columns: str | None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    told("methods")
    printed = capfd.readouterr().out
    first = [line.split(" ")[0] for line in printed.splitlines()]
    assert {known.name for known in (*methods.every(), *methods.hosted())} <= set(first)
    assert "…" not in printed
    if columns in ("80", "120"):
        table = printed.partition("\n\n")[0].splitlines()
        assert max(map(len, table)) <= int(columns)
    if columns is None:
        assert all(str(known.formula) in printed for known in methods.every())


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.sampled_from([None, 20, 40, 80, 120]))
@example([("", "1", ""), ("1" * 18, "", "")], 20)
@settings(max_examples=25, deadline=None)
def test_no_table_cuts_a_word(rows: list[tuple[str, str, str]], columns: int | None) -> None:
    table = table_of("name of it", "what it is", figures=("some figures",))
    for row in rows:
        table.add_row(*row)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.delenv("COLUMNS", raising=False)
        if columns is not None:
            patch.setenv("COLUMNS", str(columns))
        show(table)
    found = printed.getvalue()
    for name, *cells in rows:
        assert name in found
        assert all(word in found.split() for cell in cells for word in cell.split())
        assert columns is not None or all(cell in found for cell in cells)


def test_every_table_is_such_a_one() -> None:
    """The commands make their tables through `table_of` and print them through `show`."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES if path.name != "console.py"}
    tables = {name for name, text in texts.items() if "table_of(" in text}
    assert len(tables) >= 8
    for name, text in texts.items():
        assert " Table(" not in text and "Console().print" not in text
        assert ("show(" in text) == (name in tables)


@pytest.mark.parametrize("columns", ["40", "80"])
def test_help_cuts_no_option(columns: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        told(name, "--help")
        words = capfd.readouterr().out.replace(",", " ").split()
        options = [one for parameter in command.params for one in parameter.opts if one.startswith("-")]
        assert set(options) <= set(words)
    told("--help")
    printed = capfd.readouterr().out
    assert set(root.commands) <= set(printed.split())
    assert columns == "40" or "..." not in printed.partition("Commands:")[2]


def test_params_tells_nothing_of_other_libraries(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told("params", "minilm", "-m", "lora", "-m", "mam", "-m", "ssb", "-m", "houlsby")
    out, err = capfd.readouterr()
    assert not caught and not err.strip()
    assert "(?:" not in out and "\\d" not in out
