"""The order of the training rows and how they vary, as functions of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


def derived_seed(*parts: int) -> int:
    """Return a seed for torch derived from several numbers, independent of those for other numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class EpochSampler(Sampler[int]):
    """The order of the rows in an epoch, from the seed and the epoch's number.

    Args:
        lengths: tokens per row.
        group: None for a random order, or the number of rows per optimiser step that should have similar lengths.
        seed: the run's seed.
    """

    def __init__(self, lengths: Sequence[int], group: int | None, seed: int) -> None:
        self.lengths = list(lengths)
        self.group = group
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one, including the first after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        if self.group is None:
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
        else:
            order = get_length_grouped_indices(  # type: ignore[no-untyped-call]
                self.lengths, self.group, generator=generator
            )
        return iter(order)


class VariedRows(TorchDataset[dict[str, Any]]):
    """Training rows as each epoch shows them, whenever and in whatever order they are read.

    Args:
        rows: the encoded rows.
        varied: a task's function of a row and a seed.
        order: tells the run's seed and the epoch, from which with the row's number the seed follows.
    """

    def __init__(
        self, rows: Dataset, varied: Callable[[dict[str, Any], int], dict[str, Any]], order: EpochSampler
    ) -> None:
        self.rows = rows
        self.varied = varied
        self.order = order

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.varied(self.rows[row], derived_seed(self.order.seed, self.order.epoch, row))
