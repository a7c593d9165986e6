"""The tables that are written: whole, in every format, whatever the names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from subspace_tuning.errors import SubspaceError
from subspace_tuning.statistics import FORMATS, Claim, Results, Table, differences, paper_results, summary, write_tables
from subspace_tuning.statistics.tables import score_table

from .simulated import lines, quick, results

RNG = np.random.default_rng(0)
LEVELS = {"lora": 0.80, "ssb": 0.82, "full": 0.84, "my row": 0.7}
FOUND = results({row: RNG.normal(level, 0.01, (4, 5)) for row, level in LEVELS.items()}, per_mille=2.5)


def test_every_table_is_written_in_every_format(tmp_path: Path) -> None:
    paths = write_tables(FOUND, tmp_path / "tables", baseline="lora", claims=[Claim("x", "above", ("ssb",), ("lora",))])
    names = ["scores", "differences", "ranks", "claims"]
    assert [path.name for path in paths] == [f"{name}.{ending}" for name in names for ending in FORMATS]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(path.name for path in paths)
    for frame, name in ((summary(FOUND), "scores"), (differences(FOUND, "lora"), "differences")):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / f"{name}.parquet"), frame)
        read = pd.read_csv(tmp_path / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])
        assert list(read.columns) == list(frame.columns)
        assert read["row"].tolist() == frame["row"].tolist()
    claims = pd.read_csv(tmp_path / "tables" / "claims.csv")
    assert claims["verdict"].tolist() == ["supported"]
    assert claims["paper_verdict"].tolist() == ["undecided"]  # there LoRA trains four times as much
    assert claims["paper_figure"].str.startswith("budgets differ: ").all()


def test_the_papers_claims_stand_beside_the_verdicts_by_its_tables(tmp_path: Path) -> None:
    write_tables(FOUND, tmp_path, ["csv", "md"])
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert claims["claim"].tolist() == ["SSB reaches 99 % of full fine-tuning."]  # the others are about rows not there
    assert "paper_verdict" in claims
    assert claims["paper_figure"].str.contains("sign test").all()


def test_scores_stand_as_in_the_paper() -> None:
    table = score_table(FOUND, summary(FOUND), "minilm")
    assert table.header == ("row", "budget", "trained", "‰", "task0", "task1", "task2", "task3", "average")
    scores = FOUND.scores(("ssb", FOUND.cells[0]))
    half = 2.7764 * scores.std(ddof=1) / 5**0.5
    assert table.lines[1][:5] == ("ssb", "", "1,000", "2.50", f"{100 * scores.mean():.2f} ± {100 * half:.2f}")
    assert table.bold == {(2, column) for column in range(4, 9)}
    assert table.notes == ("Scores x 100: means with 95 % intervals over 5 seeds.",)


def test_the_best_is_told_within_a_budget_and_where_rows_are_matched() -> None:
    runs = [*lines("ssb", [[0.8] * 3], budget=1e3), *lines("lora", [[0.9] * 3], budget=1e3)]
    runs += [*lines("ssb", [[0.8] * 3], budget=5e3), *lines("lora", [[0.9] * 3], budget=5e3, trained=5000)]
    table = score_table(Results(pd.DataFrame(runs)), summary(Results(pd.DataFrame(runs))), "minilm")
    assert [line[:3] for line in table.lines] == [
        ("ssb", "1,000", "1,000"),
        ("lora", "1,000", "1,000"),
        ("ssb", "5,000", "1,000"),
        ("lora", "5,000", "5,000"),
    ]
    assert table.bold == {(1, 4)}
    assert table.notes[1] == (
        "No best at budget 5,000: budgets differ: lora trains 5,000 and ssb 1,000 (task0, minilm, budget 5,000), more "
        "than 10 % apart."
    )


def test_rows_are_ranked_among_those_with_their_budgets(tmp_path: Path) -> None:
    runs = [line for row in ("full", "head") for line in lines(row, RNG.random((4, 3)))]
    runs += [line for row in "abc" for budget in (1e3, 2e3) for line in lines(row, RNG.random((4, 3)), budget=budget)]
    write_tables(Results(pd.DataFrame(runs)), tmp_path, ["md", "csv"], claims=[])
    ranked = pd.read_csv(tmp_path / "ranks.csv")
    assert sorted(ranked["row"]) == ["a", "b", "c"]
    assert set(ranked["rows"]) == {"at budgets 1,000, 2,000"}
    text = (tmp_path / "ranks.md").read_text()
    assert "over 8 blocks" in text
    assert "Ranks are of at least three rows, not 2: use differences for two." in text


def test_printed_tables_can_be_written_again(tmp_path: Path) -> None:
    """One score per cell: no intervals, and no ranks."""
    write_tables(paper_results(), tmp_path, ["md"], claims=[])
    text = (tmp_path / "scores.md").read_text()
    scores = "87.50 | 94.61 | 65.38 | 89.55 | 93.19 | 83.03 | 89.22 | 91.21 | 86.71"
    assert f"| lora+orthogonal | 8 | 1,327,104 | 10.65 | {scores} |" in text
    text = (tmp_path / "ranks.md").read_text()
    assert text.count("Not ranked: too few seeds: ") == 2  # of rows with and without budgets


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@quick
@given(st.lists(TEXTS, min_size=1, max_size=4), st.booleans())
def test_any_name_is_printed_as_it_is(names: list[str], bold: bool) -> None:
    table = Table("t", ("row", "score"), tuple((name, "1") for name in names), frozenset({(0, 0)} if bold else ()))
    inline = [token for token in MarkdownIt().enable("table").parse(table.markdown()) if token.type == "inline"]
    texts = ["".join(child.content for child in token.children or ()) for token in inline]
    assert texts[0] == "t"
    assert texts[1:] == ["row", "score", *(text for name in names for text in (" ".join(name.split()), "1"))]

    body = re.split(r"\\midrule\n|\\bottomrule", table.latex())[1]
    assert len(re.findall(r" \\\\$", body, flags=re.MULTILINE)) == len(names)
    bare = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$\\\w+\$|\{[\[\]]\}", "", body.replace("\\textbf{", "{"))
    assert bare.count(" & ") == len(names)
    assert not set(re.sub(r" & | \\\\$|^\{|\}(?= &)", "", bare, flags=re.MULTILINE)) & set("&%$#_{}^~\\")


def test_tables_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        "format 'doc' is unknown; known: md, tex, csv, parquet": (FOUND, tmp_path, {"formats": ["doc"]}),
        "is a file": (FOUND, tmp_path / "file", {}),
        "the results have no row 'none'; known: full, lora, my row, ssb": (FOUND, tmp_path, {"baseline": "none"}),
        "no reported run is done: there is nothing to put into tables": (
            Results(FOUND.runs.assign(state="running")),
            tmp_path,
            {},
        ),
        "which has no results": (FOUND, tmp_path, {"claims": [Claim("x", "above", ("a",), ("b",))]}),
    }
    for line, (found, folder, options) in cases.items():
        with pytest.raises(SubspaceError, match=re.escape(line)):
            write_tables(found, folder, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
