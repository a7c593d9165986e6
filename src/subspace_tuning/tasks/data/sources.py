"""Sources of own rows: a file, a folder of files, a saved data set, or a data set on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import SubspaceError, described, nearest, reading
from .records import READERS, Records, of_dataset, read

SPLITS = ("train", "validation", "test")
_SAVED = ("dataset_dict.json", "state.json")  # files that `datasets` writes into a folder


def splits(source: str) -> dict[str, Records]:
    """Return the rows of a source by split; a file is the split "train".

    Raises:
        SubspaceError: there is no such source, or it cannot be read.
    """
    path = Path(source).expanduser()
    with reading(f"data {source!r}"):
        if path.is_file():
            return {"train": read(path)}
        if path.is_dir():
            return _saved(path) if _is_saved(path) else _folder(path)
    if path.suffix.lower() in READERS or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        beside = _tables_beside(path)
        hint = f": {nearest(path.name, beside)}" if beside else ""
        raise SubspaceError(f"data {source!r} does not exist{hint}")
    return _hub(source)


def _tables_beside(path: Path) -> list[str]:
    entries = path.parent.iterdir() if path.parent.is_dir() else ()
    return [entry.name for entry in entries if entry.suffix.lower() in READERS]


def one(found: Mapping[str, Records]) -> Records:
    """Return a source's rows for evaluation or prediction: the test split if there are several."""
    return found[next(split for split in ("test", "validation", "train") if split in found)]


def has_tables(folder: Path) -> bool:
    """Return whether a folder was saved by ``datasets`` or has a file for a split."""
    return _is_saved(folder) or any(_files(folder, split) for split in SPLITS)


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _files(folder: Path, split: str) -> list[Path]:
    return [path for suffix in READERS if (path := folder / f"{split}{suffix}").is_file()]


def _folder(folder: Path) -> dict[str, Records]:
    found: dict[str, Records] = {}
    for split in SPLITS:
        files = _files(folder, split)
        if len(files) > 1:
            names = " and ".join(path.name for path in files)
            raise SubspaceError(f"{folder} holds {names}: keep one file per split, so that it is clear which is meant")
        if files:
            found[split] = read(files[0])
    if not found:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise SubspaceError(
            f"{folder} has no train, validation or test file ({', '.join(READERS)}): it holds {held}; a file may be "
            "given by its own name"
        )
    return found


def _saved(folder: Path) -> dict[str, Records]:
    import datasets

    return _of_datasets(datasets.load_from_disk(str(folder)), str(folder))


def _hub(name: str) -> dict[str, Records]:
    import datasets  # takes a second to import, and local files do not need it

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # errors of the hub have many types
        hint = nearest(name, _tables_beside(Path(name)))
        way_out = hint if hint.startswith("did") else "give a file or a folder"
        raise SubspaceError(
            f"there is no file or folder {name!r}, and the hub has no such data: {described(error)}; {way_out}"
        ) from error
    return _of_datasets(found, name)


def _of_datasets(found: Any, where: str) -> dict[str, Records]:
    if not isinstance(found, Mapping):
        return {"train": of_dataset(found, where)}
    known = {split: of_dataset(found[split], f"{where}, {split}") for split in SPLITS if split in found}
    if not known:
        raise SubspaceError(f"{where} has none of the splits {', '.join(SPLITS)}: its own are {', '.join(found)}")
    return known
