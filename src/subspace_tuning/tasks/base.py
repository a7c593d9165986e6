"""The protocol of a task: everything that differs between tasks, and nothing else.

Training uses a task only through this class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PretrainedConfig, Trainer, TrainingArguments

from ..errors import SubspaceError
from ..models.load import Processor
from ..tuner.calibration import Batch, Loss
from .intervals import Figure, interval, of_rows
from .rows import R, Seen, Values


@dataclass(frozen=True)
class Training:
    """The trainer of a task.

    Attributes:
        trainer: its class; a run adds its own order of rows, schedules and records.
        arguments: the class of its arguments.
        settings: further arguments, set by the task.
        counts_labels: whether the loss is a mean over labels, so that accumulated batches count by their labels.
    """

    trainer: type[Trainer] = Trainer
    arguments: type[TrainingArguments] = TrainingArguments
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts_labels: bool = False


class Task(ABC, Generic[R]):
    """A task: its data, the model it needs, and how predictions are scored.

    Attributes:
        name: the name of the task in a config.
        primary: the figure by which runs are compared, one of the first evaluation split's.
        larger_is_better: whether a larger primary figure is better.
        evaluation: the splits scored during training, each with the prefix of its figures.
        model_class: the class of transformers that loads the model, such as ``AutoModelForSequenceClassification``.
        task_type: peft's name for this kind of model; None if it has none.
        loss: the task's own loss, a function of the model and a batch that returns the loss and the model's outputs;
            None for the loss that the model computes from ``labels``.
        generate: a function of the model and a batch that returns a tensor of predictions, rows first, which are scored
            instead of the model's outputs, without a loss; None if the outputs of a forward pass are scored.
        truth: the column of a batch with which predictions are compared.
        varied: a function of an encoded training row and a seed of the row's own in each epoch that returns the row as
            that epoch shows it; None if every epoch shows the rows as they are.
    """

    name: str
    primary: str
    larger_is_better: bool = True
    evaluation: tuple[tuple[str, str], ...] = (("", "validation"),)
    model_class: ClassVar[Any]
    task_type: ClassVar[TaskType | None]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Any]] | None = None
    generate: Callable[[nn.Module, Batch], Tensor] | None = None
    varied: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
    truth: str = "labels"

    @property
    def writes(self) -> bool:
        """Whether ``generate`` generates texts, token by token, so that it calls the model a number of times."""
        return False

    @property
    def preset(self) -> Mapping[str, Any]:
        """A paper's values for the ``training`` section of a run on the task, by key."""
        return {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The options with which ``configured`` turns the registered task into this one, as plain data for JSON."""
        return {}

    def configured(self, options: Mapping[str, Any]) -> Task[R]:
        """Return the task with options: the keys of a config's ``task`` section that only some tasks have.

        Raises:
            SubspaceError: the task does not have an option, or its value is invalid.
        """
        for name in options:
            raise SubspaceError(f"task.{name} has no meaning with task {self.name}: leave it out")
        return self

    @property
    def training(self) -> Training:
        """The trainer of the task; the Trainer of transformers unless the task names another."""
        return Training()

    @property
    def model_settings(self) -> Mapping[str, Any]:
        """The keyword arguments of ``model_class.from_pretrained``, such as ``num_labels``."""
        return {}

    @abstractmethod
    def load(self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None) -> dict[str, R]:
        """Return all splits of a run, by split name.

        Args:
            source: where the data are, as in ``task.data``.
            train_rows: keep only this many first rows of the training split.
            eval_rows: keep only this many first rows of each evaluation split.

        Raises:
            SubspaceError: the data cannot be found, read or used.
        """

    def for_model(self, architecture: PretrainedConfig) -> Task[R]:
        """Return the task for a model of this configuration, such as with the class that loads the model.

        Raises:
            SubspaceError: no model of this architecture can do the task.
        """
        return self

    def prepare(
        self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None
    ) -> tuple[Task[R], dict[str, R]]:
        """Return the task completed from its data, such as with the classes found there, and the loaded splits."""
        return self, self.load(source, train_rows=train_rows, eval_rows=eval_rows)

    def read(self, source: str, *, labelled: bool = True) -> R:
        """Return the rows of data other than a run's, with labels for scoring, or without.

        Raises:
            SubspaceError: the data cannot be found, read or used, or the task has no files.
        """
        raise SubspaceError(f"task {self.name} reads no files: {source} cannot be used with it")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of a row made of texts, in the order of ``rows_of``; empty if a row is anything else."""
        return ()

    def rows_of(self, *columns: Sequence[str]) -> R:
        """Return rows without labels from their texts, by column. Raises SubspaceError if a row has others, or none."""
        raise SubspaceError(f"a row of task {self.name} is not one text: give the rows as a file")

    @abstractmethod
    def encode(self, rows: R, processor: Processor, max_length: int) -> Dataset:
        """Return the rows encoded for a model, truncated to ``max_length`` tokens and not padded.

        They have ``labels`` if the rows do. If a row gives several entries, or the order changes, a column of the
        task's own holds the row of each entry.

        Raises:
            SubspaceError: a row cannot be encoded in this length.
        """

    def for_training(self, encoded: Dataset, max_length: int) -> Dataset:
        """Return encoded rows in the form used for training, such as packed."""
        return encoded

    def ready(self, model: nn.Module, processor: Processor, max_length: int) -> Task[R]:
        """Return the task completed by the model, with its adapter, and its tokenizer or image processor.

        Raises:
            SubspaceError: they cannot be used for the task.
        """
        return self

    def collator(self, processor: Processor) -> Callable[[list[Any]], Any]:
        """Return the function that makes a batch of encoded rows; by default they are padded to the longest."""
        return DataCollatorWithPadding(processor)

    def lengths(self, encoded: Dataset) -> Sequence[int]:
        """Return the length of each encoded row, by which rows are grouped into batches."""
        return [len(tokens) for tokens in encoded["input_ids"]]

    def cut(self, rows: R, encoded: Dataset, processor: Processor, max_length: int) -> int:
        """Return how many of the encoded rows are longer than ``max_length`` tokens and were cut."""
        if max(self.lengths(encoded), default=0) < max_length:
            return 0
        return sum(length > max_length for length in self.lengths(self.encode(rows, processor, max_length + 1)))

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return a model's outputs for a batch, rows first; labels in the batch are left out."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", self.truth)}
        outputs: Tensor = model(**inputs).logits
        return outputs

    @property
    def shared_call(self) -> Hashable:
        """What two runs must have in common for one call of the model to evaluate rows of both; None if none can.

        In such a call every row has its own adapter, so each row of a batch must reach the model equally often.
        """
        return ()

    def predict(self, outputs: Values) -> Values:
        """Return one prediction per row from the model's outputs, or from what ``generate`` returned."""
        return outputs

    @abstractmethod
    def score(self, predictions: Any, labels: Any) -> dict[str, float]:
        """Return the figures of predictions, one for each row, by name, ``primary`` among them."""

    def compared(self, seen: Seen[R]) -> tuple[Any, Any]:
        """Return a prediction and a label for each row, as ``score`` takes them."""
        assert seen.labels is not None
        return self.predict(seen.outputs), seen.labels

    def resampled(self, predictions: Any, labels: Any) -> Figure:
        """Return the primary figure as a function of rows, by which a thousand samples of them are scored.

        A task whose ``score`` takes milliseconds overrides this.
        """
        return lambda rows: self.score(of_rows(predictions, rows), of_rows(labels, rows))[self.primary]

    def groups(self, rows: R) -> Sequence[Hashable]:
        """Return a key for each row; rows with equal keys are held out and drawn together. By default all differ."""
        return range(len(rows))

    def figures(self, seen: Seen[R]) -> dict[str, float]:
        """Return the figures of an evaluation, with the 95 % interval of the primary one from ``_low`` to ``_high``."""
        predictions, labels = self.compared(seen)
        figures = self.score(predictions, labels)
        figure = self.resampled(predictions, labels)
        low, high = interval(figure, self.groups(seen.rows), figures[self.primary])
        return figures | {f"{self.primary}_low": low, f"{self.primary}_high": high}

    def values(self, outputs: Values) -> Values:
        """Return a model's outputs in the task's own units; ``stand_alone`` makes a model return these itself."""
        return outputs

    def stand_alone(self, model: nn.Module) -> Task[R]:
        """Make a model's outputs the task's own ``values``, in place, and return the task of that model."""
        return self

    def answers(self, seen: Seen[R]) -> list[dict[str, Any]]:
        """Return each row with its prediction, as plain data for JSON."""
        return [{"predicted": prediction} for prediction in self.predict(seen.outputs).tolist()]

    @abstractmethod
    def baseline(self, train: R, rows: R) -> dict[str, float]:
        """Return the figures on ``rows`` of a constant prediction, such as the majority class."""

    @property
    def primary_key(self) -> str:
        """The primary figure's name with its split's prefix, as an evaluation reports it."""
        return prefixed(self.evaluation[0][0], self.primary)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits used by a run."""
        return ("train", *(split for _, split in self.evaluation))

    @property
    def objective(self) -> Loss | None:
        """The task's own loss without the outputs, for ``subspace_tuning.calibrate``."""
        own = self.loss
        return None if own is None else lambda model, batch: own(model, batch)[0]

    def batches(self, rows: R, processor: Processor, max_length: int, size: int) -> Iterator[dict[str, Any]]:
        """Yield the rows in the form used for training, as batches of ``size``, in order."""
        encoded = self.for_training(self.encode(rows, processor, max_length), max_length)
        collate = self.collator(processor)
        for start in range(0, len(encoded), size):
            yield dict(collate([encoded[i] for i in range(start, min(start + size, len(encoded)))]))


def prefixed(prefix: str, name: str) -> str:
    """Return a figure's name with its split's prefix, which may be empty."""
    return f"{prefix}_{name}" if prefix else name
