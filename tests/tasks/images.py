"""Images for tests: scikit-learn's handwritten digits, as files or in tables."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 16  # of an image's sides, in pixels


@cache
def digits() -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """The PNG files of scikit-learn's digits, and the digits as words."""
    known = load_digits()
    return tuple(_png(image) for image in known.images), tuple(f"digit {number}" for number in known.target)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    grey = Image.fromarray(np.uint8(image * 255 / 16))
    grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


def write_folder(folder: Path, rows: range) -> Path:
    """Write digits as a folder of images for each class, and return the folder."""
    contents, labels = digits()
    for row in rows:
        path = folder / labels[row] / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[row])
    return folder


def by_folder(rows: range) -> list[int]:
    """The numbers of digits in the order in which a folder has them."""
    return sorted(rows, key=lambda row: (digits()[1][row], row))
