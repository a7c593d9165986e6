"""Reading a task's rows from files of every form, and refusing those that cannot be meant."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks import glue
from subspace_tuning.tasks.data import tables

Rows = list[dict[str, Any]]

ROWS: Rows = [
    {"sentence1": 'He said "no .', "sentence2": "null", "label": 1, "idx": 0},
    {"sentence1": "2004-01-01", "sentence2": "12", "label": 0, "idx": 1},
    {"sentence1": "Ünïcode, with a comma", "sentence2": "NA", "label": 1, "idx": 2},
]


def _tsv(path: Path, rows: Rows) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, Rows], Any]] = {
    "jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"),
    "json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "tsv": _tsv,
    "csv": _csv,
    "parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
}


def _folder(path: Path, kind: str, rows: Rows = ROWS) -> str:
    for split in ("train", "validation"):
        WRITERS[kind](path / f"{split}.{kind}", rows)
    return str(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_form_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    table = tables.load(glue.TASKS["mrpc"], _folder(tmp_path, kind))["train"]
    assert table.texts == (tuple(row["sentence1"] for row in ROWS), tuple(row["sentence2"] for row in ROWS))
    assert table.labels.tolist() == [1, 0, 1]


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        WRITERS["jsonl"](tmp_path / f"{split}.json", ROWS)
    assert len(tables.load(glue.TASKS["mrpc"], str(tmp_path))["train"]) == 3


def test_limits_keep_the_first_rows(tmp_path: Path) -> None:
    splits = tables.load(glue.TASKS["mrpc"], _folder(tmp_path, "jsonl"), train_rows=2, eval_rows=1)
    assert (len(splits["train"]), len(splits["validation"])) == (2, 1)
    assert splits["train"].texts[0][0] == ROWS[0]["sentence1"]


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    read = tables.load(glue.TASKS["mrpc"], _folder(tmp_path, "jsonl"))["train"]
    changed = [ROWS[0], {**ROWS[1], "label": 1}, ROWS[2]]
    other = tables.load(glue.TASKS["mrpc"], _folder(tmp_path, "jsonl", changed))["train"]
    reordered = tables.load(glue.TASKS["mrpc"], _folder(tmp_path, "jsonl", ROWS[::-1]))["train"]
    assert len({read.fingerprint(), other.fingerprint(), reordered.fingerprint()}) == 3


def test_regression_labels_are_numbers_on_the_scale(tmp_path: Path) -> None:
    rows = [{**row, "label": 2.25} for row in ROWS]
    assert tables.load(glue.TASKS["stsb"], _folder(tmp_path, "tsv", rows))["train"].labels.tolist() == [2.25] * 3


def test_classes_may_be_given_by_name(tmp_path: Path) -> None:
    rows = [{**row, "label": label} for row, label in zip(ROWS, ("not_entailment", "entailment", 1), strict=True)]
    assert tables.load(glue.TASKS["rte"], _folder(tmp_path, "csv", rows))["train"].labels.tolist() == [1, 0, 1]


def _bad(**changes: Any) -> Rows:
    return [ROWS[0], {**ROWS[1], **changes}]


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        ("rte", _bad(label=2), r"row 1: label 2 is not 0 to 1 \(entailment, not_entailment\)"),
        ("mrpc", _bad(label=-1), "row 1: label -1 is not 0 to 1"),
        ("mrpc", _bad(label="yes"), "row 1: label 'yes' is not 0 to 1"),
        ("mrpc", _bad(label=0.5), "row 1: label 0.5 is not 0 to 1"),
        ("mrpc", _bad(label=None), "row 1: label nan is not 0 to 1"),
        ("stsb", _bad(label=5.5), "row 1: label 5.5 is not 0 to 5"),
        ("mrpc", _bad(label=10**400), "row 1: label .* is not 0 to 1|cannot read"),
        ("mrpc", _bad(label=[1]), "row 1: label .* is not 0 to 1"),
        ("mrpc", _bad(label={"a": 1}), "row 1: label .* is not 0 to 1"),
        ("mrpc", _bad(sentence2=12), "row 1: sentence2 is 12, not a text"),
        ("mrpc", _bad(sentence2=None), "row 1: sentence2 is (None|nan), not a text"),
        ("cola", ROWS, "lacks column sentence of task cola: its columns are sentence1, sentence2, label, idx"),
        ("qnli", ROWS, "lacks column question, sentence of task qnli"),
        ("mrpc", [], "lacks column sentence1, sentence2, label of task mrpc: its columns are none"),
    ],
)
def test_rows_that_cannot_be_used_are_told_with_their_place(task: str, rows: Rows, told: str, tmp_path: Path) -> None:
    with pytest.raises(SubspaceError, match=told) as caught:
        tables.load(glue.TASKS[task], _folder(tmp_path, "json", rows))
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("train.jsonl", "{not json\n", "cannot read .*train.jsonl"),
        ("train.json", '"a word"', "cannot read .*train.json"),
        ("train.json", "", "cannot read .*train.json|lacks column"),
        ("train.json", "[" * 100_000, "cannot read .*train.json"),
        ("train.tsv", "", "cannot read .*train.tsv"),
        ("train.csv", 'sentence1,sentence2,label\n"open,b,1\n', "cannot read .*train.csv"),
        ("train.parquet", "PAR1", "cannot read .*train.parquet"),
        ("train.tsv", "sentence1\tsentence2\tlabel\n", "train.tsv has no rows"),
        ("train.txt", "", "no train file .* it holds train.txt"),
    ],
)
def test_files_that_cannot_be_read_are_told(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SubspaceError, match=told) as caught:
        tables.load(glue.TASKS["mrpc"], str(tmp_path))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"sentence1\tsentence2\tlabel\n\xff\tb\t1\n")
    with pytest.raises(SubspaceError, match="cannot read"):
        tables.load(glue.TASKS["mrpc"], str(tmp_path))


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    _folder(tmp_path, "jsonl")
    _folder(tmp_path, "tsv")
    with pytest.raises(SubspaceError, match=r"train\.jsonl and train\.tsv"):
        tables.load(glue.TASKS["mrpc"], str(tmp_path))


def test_a_missing_folder_and_an_unreachable_hub_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubspaceError, match=r"data folder .* does not exist"):
        tables.load(glue.TASKS["mrpc"], str(tmp_path / "nowhere"))
    import datasets

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubspaceError, match=r"Couldn't reach the hub; give a local folder as task.data"):
        tables.load(glue.TASKS["mrpc"], "glue")
