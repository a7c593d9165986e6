"""Data frames as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SubspaceError
from ..extras import needs
from ..files import check_file, written

if TYPE_CHECKING:
    import pandas as pd


FORMATS = (".csv", ".parquet", ".json")


def check_table(path: str | Path) -> Path:
    """Return the path of a table to write.

    Raises:
        SubspaceError: its ending is unknown, its folder does not exist, or the package for Parquet is not installed.
    """
    file = Path(path).expanduser()
    if file.suffix not in FORMATS:
        raise SubspaceError(f"output {str(path)!r} must end in {', '.join(FORMATS)}")
    if file.suffix == ".parquet":
        needs("a table in Parquet", "report", "pyarrow")
    return check_file(file)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a frame as CSV, Parquet or JSON, by the ending of its name."""
    with written(path) as file:
        if path.suffix == ".csv":
            table.to_csv(file, index=False)
        elif path.suffix == ".parquet":
            table.to_parquet(file, engine="pyarrow", index=False)
        else:
            table.to_json(file, orient="records", indent=1)
