"""Rows of own files as written: any columns, and the place of each row.

Everything is read as text if the format has no types, so that a class "01" stays "01".
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from ...errors import SubspaceError, nearest, reading

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Records:
    """Rows by column.

    Attributes:
        where: the file or data set, as named in messages.
        columns: by column name, a value per row, or None.
        numbers: the line of the file in which each row begins, or its number, from 1, or its own name.
        unit: "line", "row" or another name for what ``numbers`` counts.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int | str]
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.numbers)

    def column(self, name: str, key: str) -> Sequence[Any]:
        """Return a column.

        Args:
            name: the column.
            key: the config key that names it.

        Raises:
            SubspaceError: there are no rows or no such column; the message has the nearest names.
        """
        if not len(self):
            raise SubspaceError(f"{self.where} has no rows")
        if name in self.columns:
            return self.columns[name]
        [*others] = self.columns
        for separator, word in _SEPARATORS.items() if len(others) == 1 else ():
            if separator in others[0]:
                raise SubspaceError(
                    f"{self.where} has one column, {others[0]!r}: its cells seem to be separated by {word}; save it "
                    "with commas as .csv, or with tabs as .tsv"
                )
        raise SubspaceError(f"{self.where} has no column {name!r}, {nearest(name, others)}; {key} names the column")

    def place(self, row: int) -> str:
        """Return where a row is found again."""
        return f"{self.where}, {self.unit} {self.numbers[row]}"

    def refuse(self, rows: Sequence[int], what: str, way_out: str) -> NoReturn:
        """Raise SubspaceError about unusable rows, naming the place of the first."""
        more = f" (and so in {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise SubspaceError(f"{self.place(rows[0])}: {what}{more}; {way_out}")

    def texts(self, name: str, key: str) -> tuple[str, ...]:
        """Return a column of texts. Raises SubspaceError as ``column``, and if a row has no text there."""
        column = self.column(name, key)
        if empty := [row for row, value in enumerate(column) if is_missing(value)]:
            self.refuse(empty, f"column {name!r} has no text", "write one, or remove the row")
        for row, value in enumerate(column):
            if not isinstance(value, str):
                self.refuse(
                    [row], f"column {name!r} is {shown(value)}, which is not a text", "put it in quotation marks"
                )
            check_text(self, row, value)
        return tuple(column)


def check_text(records: Records, row: int, text: str) -> None:
    """Raise SubspaceError if a text cannot be encoded in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        records.refuse([row], "a text has half a surrogate pair, which UTF-8 cannot hold", "remove it")


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: null, NaN or only white space."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def as_list(value: Any, separator: str | None = None) -> list[Any] | None:
    """Return the entries of a list, its JSON, or a text with separators; None if the value is none of these.

    Args:
        value: the value as read.
        separator: the separator between the entries of a text; None for white space.
    """
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(separator) if part.strip()]
    plain = isinstance(value, list) and all(isinstance(one, (str, bool, int, float)) for one in value)
    return value if plain and not any(map(is_missing, value)) else None


def read(path: Path) -> Records:
    """Return the rows of a file, read according to its ending.

    Raises:
        SubspaceError: the file is empty, binary, not in UTF-8 or damaged, or its ending is unknown.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SubspaceError(f"{path} ends in {path.suffix or 'nothing'!r}: readable files end in {', '.join(READERS)}")
    with reading(str(path)):
        if path.stat().st_size == 0:
            raise SubspaceError(f"{path} is empty")
        return reader(path)


def lines_of_json(text: str) -> tuple[list[int], list[Any]]:
    """Return the numbers, from 1, and the content of the lines that are not empty. Raises ValueError."""
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: a text may hold other line separators
    found = [(number, _json(number, line)) for number, line in lines if line.strip()]
    return [number for number, _ in found], [content for _, content in found]


def _json(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SubspaceError(f"{path} is in UTF-16: save it in UTF-8, or `iconv -f UTF-16 -t UTF-8`")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise SubspaceError(f"{path}, line {line}: it contains a null byte, so it is not a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SubspaceError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8: save the file in UTF-8, or convert it, "
            "such as by `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None


def _separated(dialect: str) -> Callable[[Path], Records]:
    def read_cells(path: Path) -> Records:
        reader = csv.reader(io.StringIO(_text(path), newline=""), dialect, strict=True)
        header: list[str] = []
        rows: list[list[str]] = []
        numbers: list[int] = []
        start = 1
        try:
            for cells in reader:
                if cells and not header:
                    header = [name.strip() for name in cells]  # as people write "text, category"
                elif cells:
                    if len(cells) != len(header):
                        raise csv.Error(f"{len(cells)} cells under {len(header)} columns")
                    rows.append(cells)
                    numbers.append(start)
                start = reader.line_num + 1
        except csv.Error as error:
            raise SubspaceError(
                f"{path}, line {start}: {error}; put a text with a separator, a line break or a quotation mark in "
                'quotation marks, and double those inside it ("")'
            ) from error
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise SubspaceError(f"{path} has two columns {twice[0]!r}: rename one")
        return Records(
            str(path), dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}, numbers, "line"
        )

    return read_cells


def _read_json(path: Path) -> Records:
    text = _text(path)
    whole = json.loads(text) if text.lstrip().startswith("[") else _data_of(text)
    if whole is not None:
        return _of_objects(str(path), range(1, len(whole) + 1), whole, "row")
    return _of_objects(str(path), *lines_of_json(text), "line")


def _data_of(text: str) -> list[Any] | None:
    """Return the list under the key "data" of a file that is one object, as that of SQuAD is; None of another file."""
    with contextlib.suppress(ValueError):
        whole = json.loads(text)
        data = whole.get("data") if isinstance(whole, dict) else None
        return data if isinstance(data, list) else None
    return None


def _of_objects(where: str, numbers: Sequence[int], rows: Sequence[Any], unit: str) -> Records:
    for number, row in zip(numbers, rows, strict=True):
        if not isinstance(row, dict):
            raise SubspaceError(f"{where}, {unit} {number}: {shown(row)} is not an object with the columns as keys")
    names = dict.fromkeys(name for row in rows for name in row)
    return Records(where, {name: [row.get(name) for row in rows] for name in names}, numbers, unit)


def _read_parquet(path: Path) -> Records:
    import pyarrow.parquet
    from datasets import Dataset  # knows the class names if datasets wrote the file

    return of_dataset(Dataset(pyarrow.parquet.read_table(path)), str(path))


def of_dataset(dataset: Any, where: str) -> Records:
    """Return the rows of a ``datasets.Dataset``, with classes by name."""
    features = dataset.features
    columns = {name: _named(features[name], values) for name, values in dataset.to_dict().items()}
    return Records(where, columns, range(1, len(dataset) + 1))


def _named(feature: Any, values: Iterable[Any]) -> list[Any]:
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel):  # -1 means no label
        return [feature.int2str(value) if value is not None and value >= 0 else None for value in values]
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return [None if value is None else _named(feature.feature, value) for value in values]
    return list(values)


READERS: Mapping[str, Callable[[Path], Records]] = MappingProxyType(
    {
        ".csv": _separated("excel"),
        ".tsv": _separated("excel-tab"),
        ".jsonl": _read_json,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }
)
"""The readers by file ending."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: Any) -> str:
    """Return a value's Python representation, in one line of bounded length."""
    return " ".join(_REPR.repr(value).split())
