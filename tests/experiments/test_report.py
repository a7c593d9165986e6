"""`subspace report` on a store whose runs have scores without training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from subspace_tuning.comparison import work
from subspace_tuning.statistics import FORMATS

from .calls import printed_by, refusal_of
from .comparing import cells_of, planned, score_of, without_training

ROWS = ("one", "second", "third row")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_train", without_training())
        work.work(planned(path, cells_of(*ROWS), seeds=[1, 2, 3, 4]))
    return path


def claims_in(folder: Path, *claims: dict[str, Any]) -> Path:
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": list(claims)}), encoding="utf-8")
    return path


def content_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_report_has_what_the_store_has(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alike = {"claim": "All alike.", "kind": "equivalent", "rows": list(ROWS), "margin": 0.5}
    above = {"claim": "Far above.", "kind": "above", "rows": ["one"], "than": ["second"], "margin": 0.5}
    words = ["report", str(store), "-o", str(tmp_path / "out"), "--baseline", "second", "--title", "Three <rows>"]
    printed = printed_by([*words, "--claims", str(claims_in(tmp_path, alike, above))], capfd)
    assert re.search(r"All alike\. +supported", printed) and re.search(r"Far above\. +contradicted", printed)
    assert str(tmp_path / "out" / "index.html") in printed
    for name in ("scores", "differences", "ranks", "claims"):
        assert all((tmp_path / "out" / f"{name}.{ending}").stat().st_size for ending in FORMATS)

    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet").set_index("row")["mean"]
    assert set(scores.index) == set(ROWS)
    for cell in cells_of(*ROWS):
        runs = [cell.run("report", 0.04, seed) for seed in (1, 2, 3, 4)]
        assert scores[cell.row] == pytest.approx(sum(score_of(run.config) for run in runs) / 4)
    gaps = pd.read_csv(tmp_path / "out" / "differences.csv").set_index("row")["difference"]
    assert set(gaps.index) == set(ROWS) - {"second"}
    for row, gap in gaps.items():
        assert gap == pytest.approx(scores[row] - scores["second"])
    page = content_of(tmp_path / "out" / "index.html")
    assert "Three &lt;rows&gt;" in page and "Far above." in page and "third row" in page


def test_a_second_report_replaces_the_first(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = store.with_name("runs.sqlite.report")
    for title in ("An early report", "A late report"):
        printed_by(["report", str(store), "--format", "csv", "--title", title], capfd)
        assert sorted(file.name for file in folder.iterdir()) == [
            *("differences.csv", "index.html", "ranks.csv", "scores.csv")
        ]
    page = content_of(folder / "index.html")
    assert "A late report" in page and "An early report" not in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--baseline", "secnd"], "no row 'secnd'; did you mean second"),
        (["--format", "docx"], "format 'docx' is unknown; known: md, tex, csv, parquet"),
        (["--claims", "absent.yaml"], "absent.yaml"),
        (["-o", "file"], "output 'file' is a file"),
    ],
)
def test_bad_input_is_told(
    words: list[str],
    told: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert told in refusal_of(["report", str(store), "-o", "new", *words], capfd)
    assert not (tmp_path / "new").exists()


def test_a_claim_about_an_absent_row_is_told(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    claim = {"claim": "Above.", "kind": "above", "rows": ["one"], "than": ["fourth"]}
    words = ["report", str(store), "-o", str(tmp_path / "new"), "--claims", str(claims_in(tmp_path, claim))]
    assert "is about row 'fourth', which has no results" in refusal_of(words, capfd)


def test_a_store_without_reported_runs_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    planned(tmp_path / "runs.sqlite", cells_of(*ROWS))
    assert "has no reported run that is done" in refusal_of(["report", str(tmp_path / "runs.sqlite")], capfd)
    assert refusal_of(["report", str(tmp_path / "absent.sqlite")], capfd)
    (tmp_path / "foreign.sqlite").write_text(json.dumps({}), encoding="utf-8")
    assert refusal_of(["report", str(tmp_path / "foreign.sqlite")], capfd)
