"""Images of a person's own: folders of them, single files, and columns of images in data sets.

An image is read from its file whenever it is needed, so that a data set may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ...errors import SubspaceError, described
from ..rows import Values
from . import sources
from .columns import Columns, digest_of
from .records import READERS, Records, is_missing, shown

_DEEP = ("I", "F")  # modes of more than 8 bits a channel, which Pillow would clip


@dataclass(frozen=True)
class Picture:
    """An image where it is stored.

    Attributes:
        name: as messages and answers call it.
        path: its file.
        data: instead, the content of such a file.
    """

    name: str
    path: str | None = None
    data: bytes | None = None

    def content(self) -> bytes:
        """Return the content of its file."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return Path(self.path).read_bytes()


def opened(content: bytes) -> Image.Image:
    """Return the image in a file's content, in RGB and upright.

    Raises:
        Exception: it cannot be decoded; Pillow's errors have many types.
    """
    image = Image.open(io.BytesIO(content))
    if image.mode.startswith(_DEEP):
        raise ValueError(f"it has more than 8 bits per channel (mode {image.mode})")
    return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Images(Columns):
    """Images, and the number of each one's class if there are labels."""

    pictures: tuple[Picture, ...]
    labels: Values | None

    @property
    def known(self) -> Values:
        """The labels of images that have them."""
        assert self.labels is not None
        return self.labels

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents and the labels, wherever the files are."""
        contents = (hashlib.sha256(picture.content()).digest() for picture in self.pictures)
        return digest_of(b"".join(contents), self.labels)


def splits(source: str) -> dict[str, Records]:
    """Return the rows of a source by split, with the columns ``image`` and ``label``.

    A folder of images has a folder for each class, perhaps within folders ``train``, ``validation`` and ``test``. An
    image outside of them has no label. Every other source is read by ``sources.splits``.

    Raises:
        SubspaceError: there is no such source, a folder has no images, or the source cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not sources.has_tables(path):
        inner = {split: path / split for split in sources.SPLITS if (path / split).is_dir()}
        return {split: _folder(folder) for split, folder in (inner or {"train": path}).items()}
    if path.is_file() and path.suffix.lower() not in READERS:
        return {"train": _records(path.parent, [(path, None)])}
    return sources.splits(source)


def _folder(folder: Path) -> Records:
    found: list[tuple[Path, str | None]] = []
    for entry in _entries(folder):
        if not entry.is_dir():
            found.append((entry, None))
            continue
        inside = [(path, entry.name) for path in _entries(entry)]
        if not inside:
            raise SubspaceError(f"the class folder {entry} is empty: put images there, or take it away")
        found += inside
    if not found:
        raise SubspaceError(f"{folder} is empty: it needs a folder of images for each class")
    return _records(folder, found)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _records(folder: Path, found: Sequence[tuple[Path, str | None]]) -> Records:
    paths = [path for path, _ in found]
    labels = [label for _, label in found]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return Records(str(folder), {"image": paths, "label": labels}, names, "file")


def pictures(records: Records, column: str) -> tuple[Picture, ...]:
    """Return a column of images, each decoded once to see that it can be.

    Raises:
        SubspaceError: there is no such column, or a row of it has no image that can be decoded; the message names it.
    """
    values = records.column(column, "task.image")
    if empty := [row for row, value in enumerate(values) if is_missing(value)]:
        records.refuse(empty, f"column {column!r} has no image", "give one, or take the row away")
    found = tuple(_picture(records, row, value, column) for row, value in enumerate(values))
    for row, picture in enumerate(found):
        if damage := _damage(picture):
            records.refuse([row], f"it is no image that can be read: {damage}", "save it again, or take it away")
    return found


def _damage(picture: Picture) -> str | None:
    """Return why an image cannot be decoded, or None."""
    try:
        opened(picture.content())
    except UnidentifiedImageError:  # its own text has the address of a buffer
        return "its format is not known"
    except Exception as error:  # a damaged file makes Pillow raise errors of any type
        return described(error)
    return None


def _picture(records: Records, row: int, value: Any, column: str) -> Picture:
    """Return the image in a cell: a path relative to the table, a file's content, or datasets' pair of both."""
    match value:
        case Path():
            return Picture(str(value), path=str(value))
        case str():
            return Picture(value, path=str(Path(records.where).parent / value))
        case bytes():
            return Picture(f"{records.unit} {records.numbers[row]}", data=value)
        case Mapping() if isinstance(value.get("bytes"), bytes):
            return Picture(value.get("path") or f"{records.unit} {records.numbers[row]}", data=value["bytes"])
        case Mapping() if isinstance(value.get("path"), str):
            return _picture(records, row, value["path"], column)
    records.refuse([row], f"column {column!r} is {shown(value)}, which is no image", "give its file's name")
