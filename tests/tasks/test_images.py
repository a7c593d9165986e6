"""Own images: where they are found, what is refused, and how they vary."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks.data.images import opened
from subspace_tuning.tasks.image_classification import AUGMENTATIONS, augmented

from .images import by_folder, digits, write_folder

ROWS = range(30)
TASK = tasks.get("image_classification")


def folder(path: Path) -> str:
    write_folder(path / "train", ROWS)
    return str(path)


def classes_alone(path: Path) -> str:
    return str(write_folder(path, ROWS))


def table(image: Callable[[int], Any]) -> pd.DataFrame:
    rows = by_folder(ROWS)
    return pd.DataFrame({"image": [image(row) for row in rows], "label": [digits()[1][row] for row in rows]})


def csv(path: Path) -> str:
    write_folder(path / "files", ROWS)
    table(lambda row: f"files/{digits()[1][row]}/{row:04}.png").to_csv(path / "rows.csv", index=False)
    return str(path / "rows.csv")


def parquet(path: Path) -> str:
    path.mkdir()
    table(lambda row: digits()[0][row]).to_parquet(path / "rows.parquet")
    return str(path / "rows.parquet")


def saved(path: Path) -> str:
    names = sorted({*digits()[1]})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = table(lambda row: {"bytes": digits()[0][row], "path": None}).to_dict("list")
    rows["label"] = [names.index(name) for name in rows["label"]]
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return str(path)


FORMS = (folder, classes_alone, csv, parquet, saved)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_the_same_rows_in_every_form(form: Callable[[Path], str], tmp_path: Path) -> None:
    task, rows = TASK.prepare(form(tmp_path / "images"))
    assert task.names == tuple(f"digit {number}" for number in range(10))
    assert (len(rows["train"]), len(rows["validation"])) == (24, 6)
    _, others = TASK.prepare(folder(tmp_path / "others"))
    assert {split: part.fingerprint() for split, part in rows.items()} == {
        split: part.fingerprint() for split, part in others.items()
    }
    other = TASK.configured({"held_out_seed": 1}).load(form_again(form, tmp_path))
    assert other["validation"].fingerprint() != rows["validation"].fingerprint()


def form_again(form: Callable[[Path], str], folder: Path) -> str:
    return form(folder / "again")


def test_validation_images_of_their_own_are_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ROWS)
    write_folder(tmp_path / "validation", range(30, 37))
    rows = TASK.load(str(tmp_path), train_rows=20)
    assert (len(rows["train"]), len(rows["validation"])) == (20, 7)


def test_images_to_predict_need_no_class(tmp_path: Path) -> None:
    for row in range(3):
        (tmp_path / f"{row}.png").write_bytes(digits()[0][row])
    (tmp_path / ".hidden").write_text("of a file manager")
    assert len(TASK.read(str(tmp_path), labelled=False)) == 3
    assert len(TASK.read(str(tmp_path / "0.png"), labelled=False)) == 1
    with pytest.raises(SubspaceError, match=r"file 0\.png: column 'label' has no label"):
        TASK.prepare(str(tmp_path))


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2]


def deep(content: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "half": (damaged, "it is no image that can be read"),
    "text": (lambda content: b"not an image", "it is no image that can be read: its format is not known"),
    "empty": (lambda content: b"", "it is no image that can be read: its format is not known"),
    "deep": (deep, r"more than 8 bits per channel \(mode I;16\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_image_is_named(name: str, tmp_path: Path) -> None:
    spoil, told = BAD[name]
    write_folder(tmp_path / "train", ROWS)
    file = sorted((tmp_path / "train").glob("*/*"))[7]
    file.write_bytes(spoil(file.read_bytes()))
    inside = file.relative_to(tmp_path / "train").as_posix()
    with pytest.raises(SubspaceError, match=rf"^[^\n]*train, file {re.escape(inside)}: [^\n]*{told}[^\n]*$"):
        TASK.prepare(str(tmp_path))


def test_folders_that_hold_too_little_are_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "digit 0").mkdir(parents=True)
    with pytest.raises(SubspaceError, match=r"class folder .*digit 0 is empty"):
        TASK.prepare(str(tmp_path))
    shutil.rmtree(tmp_path / "train" / "digit 0")
    with pytest.raises(SubspaceError, match=r"train is empty: it needs a folder of images for each class"):
        TASK.prepare(str(tmp_path))
    path = tmp_path / "train" / "digit 0" / "0.png"
    path.parent.mkdir()
    path.write_bytes(digits()[0][0])
    with pytest.raises(SubspaceError, match=r"train.*needs two classes, and this one has 'digit 0'"):
        TASK.prepare(str(tmp_path))
    with pytest.raises(SubspaceError, match="does not exist"):
        TASK.prepare(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": "photo"}, "task.image names the column"),
        ({"augment": ["spin"]}, "task.augment has 'spin': .*crop, flip"),
        ({"separator": ";"}, "task.separator has no meaning with task image_classification"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SubspaceError, match=told):
        TASK.configured(options)


def test_an_image_is_upright_and_in_colour(tmp_path: Path) -> None:
    sideways = Image.new("L", (4, 8))
    exif = sideways.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    sideways.save(tmp_path / "photo.jpg", exif=exif)
    image = opened((tmp_path / "photo.jpg").read_bytes())
    assert (image.mode, image.size) == ("RGB", (8, 4))


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    ways=st.lists(st.sampled_from(AUGMENTATIONS), unique=True),
)
def test_an_image_varies_with_the_seed_alone(width: int, height: int, seed: int, ways: list[str]) -> None:
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    one, other = (augmented(Image.fromarray(pixels), ways, np.random.default_rng(seed)) for _ in range(2))
    assert one.size == other.size and one.tobytes() == other.tobytes()
    if not ways:
        assert np.array_equal(np.asarray(one), pixels)
    if "crop" not in ways:
        assert one.size == (width, height)
    # Half of the area, up to the rounding of both sides.
    assert (one.width + 0.5) * (one.height + 0.5) >= 0.5 * width * height
    drawn = {augmented(Image.fromarray(pixels), AUGMENTATIONS, np.random.default_rng(k)).tobytes() for k in range(8)}
    assert len(drawn) > 1 or width * height < 9
