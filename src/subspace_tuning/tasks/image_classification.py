"""One class per image, from a person's own folders or data sets.

Examples:
    >>> import numpy as np
    >>> task = ImageClassification(classes=("bird", "cat"))
    >>> task.score(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))["accuracy"]
    0.75
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from peft import TaskType
from PIL import Image, ImageOps
from transformers import AutoModelForImageClassification

from ..errors import SubspaceError, nearest
from ..models.load import Processor
from .data import images
from .data.images import Images, Picture
from .data.records import Records
from .one_class import OneClassTask
from .registry import register
from .rows import Seen
from .texts import by_class

AUGMENTATIONS = ("crop", "flip")
"""The ways in which training images can vary."""
_SHARES = (0.5, 1.0)  # of an image's area in a crop
_RATIOS = (3 / 4, 4 / 3)  # by which a crop's shape differs from the image's
_SEED = "seed"  # the column of a row that varies


@dataclass(frozen=True)
class ImageClassification(OneClassTask[Images]):
    """One of several classes per image.

    Attributes:
        image: the column of the image, where the rows are no folder of images.
        augment: how training images vary from epoch to epoch: some of ``AUGMENTATIONS``.
    """

    name = "image_classification"
    model_class: ClassVar[Any] = AutoModelForImageClassification
    task_type: ClassVar[TaskType | None] = None

    image: str = "image"
    augment: tuple[str, ...] = ()

    def configured(self, options: Mapping[str, Any]) -> ImageClassification:
        """Return the task with these options."""
        if "text" in options:
            raise SubspaceError(f"task.text has no meaning with task {self.name}: task.image names the column")
        made = super().configured(options)
        assert isinstance(made, ImageClassification)
        if unknown := [way for way in made.augment if way not in AUGMENTATIONS]:
            raise SubspaceError(f"task.augment has {unknown[0]!r}: {nearest(unknown[0], AUGMENTATIONS)}")
        return made

    def records_of(self, source: str) -> dict[str, Records]:
        """Return the images of a source by split."""
        return images.splits(source)

    def rows(self, records: Records, labels: Sequence[str] | None) -> Images:
        """Return records as images, each of which can be decoded."""
        return Images(images.pictures(records, self.image), None if labels is None else self.numbers(records, labels))

    def encode(self, rows: Images, processor: Processor, max_length: int) -> Dataset:
        """Return where each image is, with its label: a batch decodes its own images, which would not all fit."""
        columns = {"image": [{"path": one.path, "bytes": one.data} for one in rows.pictures]}
        features = {"image": ImageFeature(decode=False)}
        if rows.labels is None:
            return Dataset.from_dict(columns, features=Features(features))
        features |= {"labels": Value("int64")}
        return Dataset.from_dict({**columns, "labels": rows.labels}, features=Features(features))

    def lengths(self, encoded: Dataset) -> Sequence[int]:
        """Return 1 for every image: a model gets all of them in one size."""
        return [1] * len(encoded)

    @property
    def varied(self) -> Callable[[dict[str, Any], int], dict[str, Any]] | None:  # type: ignore[override]
        """Lets a training image vary with a seed, if it shall."""
        return (lambda row, seed: {**row, _SEED: seed}) if self.augment else None

    def collator(self, processor: Processor) -> Callable[[list[Any]], Any]:
        """Return the function that decodes, varies and processes the images of a batch."""

        def collate(rows: list[Any]) -> dict[str, Any]:
            batch = dict(processor([self._image(row) for row in rows], return_tensors="pt"))
            if "labels" in rows[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch

        return collate

    def _image(self, row: Mapping[str, Any]) -> Image.Image:
        held = row["image"]
        image = images.opened(Picture("", held["path"], held["bytes"]).content())
        return augmented(image, self.augment, np.random.default_rng(row[_SEED])) if _SEED in row else image

    def answers(self, seen: Seen[Images]) -> list[dict[str, Any]]:
        """Return each image's name with its class and the probabilities of all."""
        told = zip(seen.rows.pictures, by_class(seen.outputs, self.names), strict=True)
        return [{"image": picture.name, **answer} for picture, answer in told]


def augmented(image: Image.Image, ways: Sequence[str], rng: np.random.Generator) -> Image.Image:
    """Return an image cropped at random to at least half of its area, or mirrored in every second case, or both."""
    if "crop" in ways:
        share, ratio = rng.uniform(*_SHARES), math.exp(rng.uniform(*np.log(_RATIOS)))
        width, height = (
            max(1, min(side, round(side * math.sqrt(share * stretch))))
            for side, stretch in ((image.width, ratio), (image.height, 1 / ratio))
        )
        left, top = (int(rng.integers(0, free, endpoint=True)) for free in (image.width - width, image.height - height))
        image = image.crop((left, top, left + width, top + height))
    if "flip" in ways and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return image


register(ImageClassification())
