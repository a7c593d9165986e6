"""The same rows in every form of file, and rows for every kind of task on own files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

Rows = list[dict[str, Any]]


def _plain(value: Any) -> Any:
    """A value as a cell of a text file has it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _separated(separator: str) -> Callable[[Path, Rows], Path]:
    def write(path: Path, rows: Rows) -> Path:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
        return path

    return write


def _text(written: Callable[[Rows], str]) -> Callable[[Path, Rows], Path]:
    def write(path: Path, rows: Rows) -> Path:
        path.write_text(written(rows), encoding="utf-8", newline="")
        return path

    return write


def _parquet(path: Path, rows: Rows) -> Path:
    pd.DataFrame(rows).to_parquet(path)
    return path


def _saved(path: Path, rows: Rows) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def _saved_splits(path: Path, rows: Rows) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)
    return path


def _folder(path: Path, rows: Rows) -> Path:
    path.mkdir()
    WRITERS["csv"](path / "train.csv", rows)
    return path


WRITERS: Mapping[str, Callable[[Path, Rows], Path]] = {
    "csv": _separated(","),
    "tsv": _separated("\t"),
    "jsonl": _text(lambda rows: "".join(json.dumps(row) + "\n" for row in rows)),
    "json": _text(lambda rows: json.dumps(rows, ensure_ascii=False)),
    "parquet": _parquet,
    "saved": _saved,
    "splits": _saved_splits,
    "folder": _folder,
}
"""By the ending of a file, or the kind of a folder, what writes rows there and returns the source."""


def write(folder: Path, form: str, rows: Rows, name: str = "rows") -> str:
    """Write rows in a form and return their source."""
    return str(WRITERS[form](folder / f"{name}.{form}", rows))


WORDS = ("ba", "de", "fi", "go", "lu", "ne", "bak", "dek", "fik", "gok")


def _sentence(number: int) -> list[str]:
    return [WORDS[(number * step + step) % len(WORDS)] for step in range(1, 4 + number % 3)]


ROWS: Mapping[str, Rows] = {
    "classification": [{"text": " ".join(_sentence(n)), "label": ("01", "true", "Käse")[n % 3]} for n in range(30)],
    "regression": [{"text": " ".join(_sentence(n)), "label": 1000.0 + 50.5 * (n % 7)} for n in range(30)],
    "multi_label": [
        {"text": " ".join(_sentence(n)), "label": [name for bit, name in enumerate(("a", "b b", "c")) if n >> bit & 1]}
        for n in range(30)
    ],
    "token_classification": [
        {"tokens": _sentence(n), "tags": ["K" if word.endswith("k") else "O" for word in _sentence(n)]}
        for n in range(30)
    ],
}
"""Rows by the kind of task."""


def _question(number: int) -> dict[str, Any]:
    """A question about two sentences of made-up words, about each of which two are asked; every fifth has no answer."""
    words = _sentence(number // 2) + _sentence(number // 2 + 1)
    word = number % len(words)
    start = len(" ".join([*words[:word], ""]))
    none = number % 5 == 0
    answers = {"text": [] if none else [words[word]], "answer_start": [] if none else [start]}
    return {"context": " ".join(words), "question": WORDS[number % 7], "answers": answers}


TEXT_ROWS: Mapping[str, Rows] = {
    "question_answering": [_question(n) for n in range(30)],
    # Every third input is there twice.
    "generation": [
        {"input": " ".join(_sentence(n - n % 3 // 2)), "output": " ".join(_sentence(n)[:2])} for n in range(30)
    ],
}
"""Rows by the kind of task whose answers are texts."""
