"""Rows of a task from a local folder or from the hub, checked before use.

A folder holds one file per split, named as the hub names the split: `train.jsonl`, `validation.jsonl`; also `.json`,
`.tsv`, `.csv` and `.parquet`. The columns are those of the hub's `glue` data sets; other columns are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ...errors import SubspaceError, described, reading
from ..rows import Values
from .columns import Columns, digest_of, picked
from .records import lines_of_json, shown

HUB = "glue"
"""The name in a config for the hub's GLUE."""
_HUB_NAME = "nyu-mll/glue"


class Labelled(Protocol):
    """What a table needs to know about its task: the columns, the splits, and the labels."""

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def bounds(self) -> tuple[float, float] | None: ...
    @property
    def regression(self) -> bool: ...
    @property
    def splits(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Table(Columns):
    """One split: `texts` holds a tuple of strings per text column, `labels` one entry per row, if there are labels."""

    texts: tuple[tuple[str, ...], ...]
    labels: Values | None

    def __len__(self) -> int:
        return len(self.texts[0])

    def select(self, rows: Sequence[int]) -> Table:
        """Return the rows of these numbers."""
        return Table(tuple(picked(column, rows) for column in self.texts), picked(self.labels, rows))

    @property
    def known(self) -> Values:
        """The labels, of rows that have them."""
        assert self.labels is not None
        return self.labels

    def fingerprint(self) -> str:
        """Return SHA-256 over texts and labels: runs with the same one used the same rows in the same order."""
        texts = (text.encode("utf-8", "surrogatepass") + b"\0" for column in self.texts for text in column)
        return digest_of(b"".join(texts), self.labels)


def _read_json(path: Path) -> pd.DataFrame:
    # Not pandas' own reader, which converts sentences that look like dates or numbers.
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else lines_of_json(text)[1]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its entries are not objects with the columns as keys")
    return pd.DataFrame(rows)


def _read_csv(path: Path) -> pd.DataFrame:
    # A sentence may be "null" or "NA".
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")


def _read_tsv(path: Path) -> pd.DataFrame:
    # GLUE's own TSV files have no quoting: a quotation mark is part of the sentence.
    return pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False, encoding="utf-8")


_READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = MappingProxyType(
    {".jsonl": _read_json, ".json": _read_json, ".tsv": _read_tsv, ".csv": _read_csv, ".parquet": pd.read_parquet}
)


def load(
    task: Labelled, source: str, *, train_rows: int | None = None, eval_rows: int | None = None
) -> dict[str, Table]:
    """Return all splits of a run of `task`, by split name.

    Args:
        task: the task whose columns and labels the data must have.
        source: a folder, or "glue" for the hub's data.
        train_rows: keep only this many first rows of the training split.
        eval_rows: keep only this many first rows of each evaluation split.

    Raises:
        SubspaceError: a folder, file or column is missing, a file cannot be read, or a row cannot be used.
    """
    # A folder of that name wins; the hub can still be reached from another directory.
    local = source != HUB or Path(source).is_dir()
    read = _from_folder if local else _from_hub
    tables = {}
    for split in task.splits:
        frame, where = read(task, source, split)
        limit = train_rows if split == "train" else eval_rows
        tables[split] = check(task, frame if limit is None else frame.head(limit), where)
    return tables


def _from_folder(task: Labelled, source: str, split: str) -> tuple[pd.DataFrame, str]:
    with reading(f"data folder {shown(source)}"):
        folder = Path(source).expanduser()
        exists = folder.is_dir()
    if not exists:
        raise SubspaceError(f"data folder {source!r} does not exist: give a folder, or {HUB!r} for the hub's data")
    found = [path for suffix in _READERS if (path := folder / f"{split}{suffix}").is_file()]
    if not found:
        wanted = ", ".join(_READERS)
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise SubspaceError(f"no {split} file ({wanted}) for task {task.name} in {folder}: it holds {held}")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise SubspaceError(f"{folder} holds {names}: keep one file per split, so that it is clear which is meant")
    return _read(found[0]), str(found[0])


def _read(path: Path) -> pd.DataFrame:
    try:
        return _READERS[path.suffix](path)
    except Exception as error:  # a damaged file can raise anything in its reader
        raise SubspaceError(f"cannot read {path}: {described(error)}") from error


def load_file(task: Labelled, source: str, *, labelled: bool = True) -> Table:
    """Return the rows of one file in the columns of `task`, with labels or without. Raises SubspaceError as `load`."""
    path = Path(source).expanduser()
    if path.suffix not in _READERS or not path.is_file():
        raise SubspaceError(f"{source!r} is not a file that ends in {', '.join(_READERS)}")
    return check(task, _read(path), source, labelled=labelled)


def _from_hub(task: Labelled, source: str, split: str) -> tuple[pd.DataFrame, str]:
    import datasets  # takes a second to import, and a local folder does not need it

    try:
        frame = datasets.load_dataset(_HUB_NAME, task.name, split=split).to_pandas()
    except Exception as error:  # errors of the hub have many types
        raise SubspaceError(
            f"cannot get {_HUB_NAME}/{task.name} from the hub: {described(error)}; give a local folder as task.data"
        ) from error
    return pd.DataFrame(frame), f"{_HUB_NAME}/{task.name}/{split}"


def check(task: Labelled, frame: pd.DataFrame, where: str, *, labelled: bool = True) -> Table:
    """Return the rows of `frame` as a table of `task`.

    Args:
        task: the task, which determines the columns and labels.
        frame: the rows; other columns are ignored.
        where: the name of the data in an error, such as its path.
        labelled: whether the labels are read.

    Raises:
        SubspaceError: a column or all rows are missing, a text is not a string, or a label is not one of the task's.
    """
    wanted = (*task.columns, *(["label"] if labelled else []))
    if missing := [column for column in wanted if column not in frame.columns]:
        present = ", ".join(map(str, frame.columns)) or "none"
        raise SubspaceError(f"{where} lacks column {', '.join(missing)} of task {task.name}: its columns are {present}")
    if frame.empty:
        raise SubspaceError(f"{where} has no rows")
    texts = tuple(_texts(frame[column], where) for column in task.columns)
    return Table(texts, _labels(task, frame["label"], where) if labelled else None)


def _texts(column: pd.Series, where: str) -> tuple[str, ...]:
    texts = column.tolist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise SubspaceError(f"{where}, row {row}: {column.name} is {shown(text)}, not a text")
        if not _encodes(text):
            raise SubspaceError(f"{where}, row {row}: {column.name} has half a surrogate pair, which no UTF-8 text has")
    return tuple(texts)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _labels(task: Labelled, column: pd.Series, where: str) -> Values:
    by_name = {name: number for number, name in enumerate(task.labels)}
    numbers = np.array([_number(label, by_name) for label in column], dtype=np.float64)
    low, high = task.bounds or (0.0, len(task.labels) - 1.0)
    wrong = ~((numbers >= low) & (numbers <= high))  # written so that NaN fails, too
    if not task.regression:
        wrong |= numbers != np.floor(numbers)
    if wrong.any():
        row = int(wrong.argmax())
        allowed = f"{low:g} to {high:g}" if task.regression else f"0 to {high:g} ({', '.join(task.labels)})"
        raise SubspaceError(
            f"{where}, row {row}: label {shown(column.tolist()[row])} is not {allowed} as task {task.name} has it"
        )
    return numbers if task.regression else numbers.astype(np.int64)


def _number(label: Any, by_name: Mapping[str, int]) -> float:
    """Return a label as a number, looking up class names; NaN if it is neither."""
    if isinstance(label, str) and label in by_name:
        return by_name[label]
    try:
        return float(label)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number beyond every float
        return math.nan
