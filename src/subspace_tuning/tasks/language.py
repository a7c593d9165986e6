"""The base of tasks in which a decoder answers chats, trained by TRL's SFTTrainer on the answers alone."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..errors import SubspaceError
from ..models.load import end_tokens
from ..tuner.calibration import Batch
from ..tuner.loss import IGNORED
from . import sft
from .base import Training
from .data.chats import Chats, without_answer
from .data.records import Records
from .decoding import Decoding, generate, left_padded, texts_of, until_end
from .own import OwnTask
from .rows import Values
from .templates import chat_template, prompt, read_template, written

logger = logging.getLogger(__name__)

PROMPT = "prompt"
"""The column of questions without answers."""
_LIMITS = "raise task.max_length, or shorten the row"


@dataclass(frozen=True)
class LanguageTask(OwnTask[Chats]):
    """A task of chats whose answers a decoder learns.

    Attributes:
        template: the chat template: a name, a file in Jinja, or its text; None for the tokenizer's own.
        packing: whether several short rows are packed into one for training, without attention between them.
        max_new_tokens: the most tokens generated per row.
        tokenizer: the model's tokenizer, set by ``ready``.
    """

    model_class: ClassVar[Any] = AutoModelForCausalLM
    task_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    beside: ClassVar[tuple[str, ...]] = ()  # the columns of encoded rows that are for scoring alone

    template: str | None = None
    packing: bool = False
    max_new_tokens: int = 256
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, metadata={"option": False})

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of the last questions, as in ``answers``."""
        return (PROMPT,)

    @property
    def shared_call(self) -> Hashable:
        """The most tokens of an answer; the chat template is the tokenizer's."""
        return self.max_new_tokens

    @property
    def training(self) -> Training:
        """Return TRL's SFTTrainer, which computes the loss of answers without the logits of all tokens."""
        return sft.training()

    def configured(self, options: Mapping[str, Any]) -> LanguageTask:
        """Return the task with these options, with the text of a template in place of its name or file."""
        sft.check_installed()
        made = super().configured(options)
        assert isinstance(made, LanguageTask)
        if made.max_new_tokens < 1:
            raise SubspaceError(f"task.max_new_tokens is {made.max_new_tokens}: it must be at least 1")
        return made if made.template is None else replace(made, template=read_template(made.template))

    def settled(self, records: Records, labels: list[Any]) -> LanguageTask:
        """Return the task itself."""
        return self

    def encode(self, rows: Chats, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the rows as token ids, with labels for the answers; unlabelled rows end where an answer begins.

        Raises:
            SubspaceError: a chat cannot be formatted, or truncation would leave nothing of its answers.
        """
        template = chat_template(tokenizer, self.template)
        if not rows.labelled:
            prompts = [prompt(tokenizer, *one) for one in self._each(rows, template)]
            for place, tokens in zip(rows.places, prompts, strict=True):
                _check_length(place, len(tokens), max_length)
            return Dataset.from_dict({"input_ids": prompts})
        found = [written(tokenizer, *one) for one in self._each(rows, template)]
        for place, one in zip(rows.places, found, strict=True):
            _check_length(place, next(at for at, label in enumerate(one.labels) if label != IGNORED), max_length)
        columns = {"input_ids": [one.tokens for one in found], "labels": [one.labels for one in found]}
        return Dataset.from_dict({name: [one[:max_length] for one in values] for name, values in columns.items()})

    def _each(self, rows: Chats, template: str) -> list[tuple[Any, str, str]]:
        return [(chat, template, place) for chat, place in zip(rows.chats, rows.places, strict=True)]

    def for_training(self, encoded: Dataset, max_length: int) -> Dataset:
        """Return tokens and labels, packed if the task says so."""
        encoded = encoded.select_columns(["input_ids", "labels"])
        return sft.packed(encoded, max_length) if self.packing else encoded

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Any]], Any]:
        """Return a function that pads a batch on the right; packed rows are separated by their positions."""
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise SubspaceError("the model's tokenizer has neither a padding token nor an end token: add one to it")

        def collate(rows: list[Any]) -> dict[str, Any]:
            batch: dict[str, Any] = {"input_ids": _padded([row["input_ids"] for row in rows], pad)}
            if "seq_lengths" in rows[0]:
                # Without a mask and a cache, transformers starts a new sequence, which attends to none before it,
                # wherever the positions return to 0.
                places = [[place for length in row["seq_lengths"] for place in range(length)] for row in rows]
                batch |= {"position_ids": _padded(places, 0), "use_cache": False}
            else:
                batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], 0)
            return batch | {
                name: _padded([row[name] for row in rows]) for name in ("labels", *self.beside) if name in rows[0]
            }

        return collate

    def ready(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> LanguageTask:
        """Return the task with its tokenizer; the model's ``generation_config`` gets the tokens that end an answer.

        Raises:
            SubspaceError: the model is not a decoder, generated answers would not end or not fit, or packed rows would
                attend to each other.
        """
        template = chat_template(tokenizer, self.template)
        learnt = _ends_of_turn(tokenizer, template)
        if not learnt:
            logger.warning(
                "the chat template ends answers without a special token in the loss: the model will not learn to stop"
            )
        ends = {*end_tokens(model), *learnt, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
        if not ends:
            raise SubspaceError("the model's tokenizer has no end token, so generation would not stop: add one to it")
        room = _positions(model)
        new = self.max_new_tokens
        if self.writes and room is not None and max_length + new > room:
            raise SubspaceError(
                f"task.max_length is {max_length} and task.max_new_tokens {new}, and the model has {room} positions "
                "for both: lower one of them"
            )
        model.generation_config.eos_token_id = sorted(ends)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        if self.template is not None:
            tokenizer.chat_template = template
        training = model.training
        model.eval()
        with torch.no_grad():
            _check_decoder(model)
            if self.packing:
                _check_packing(model, self.collator(tokenizer))
        model.train(training)
        return replace(self, tokenizer=tokenizer)

    def written_by(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the generated answers to the prompts of a batch, padded with -100 (rows x tokens)."""
        assert self.tokenizer is not None
        asked = prompts_of(batch)
        room = _positions(model)
        new = self.max_new_tokens if room is None else min(self.max_new_tokens, room - max(map(len, asked)))
        device, pad = batch["input_ids"].device, self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        prompts = left_padded([torch.tensor(tokens, device=device) for tokens in asked], pad)
        ends = end_tokens(model)
        found = generate(model, prompts, Decoding(new), decoder=True).tolist()
        return _padded([until_end(tokens, ends) for tokens in found]).to(device)

    def texts_of(self, outputs: Values) -> list[str]:
        """Return the output of ``written_by`` as texts."""
        assert self.tokenizer is not None
        return texts_of(outputs, self.tokenizer)

    @abstractmethod
    def rows(self, records: Records, labels: list[Any] | None) -> Chats:
        """Return records as chats."""


def prompts_of(batch: Batch) -> list[list[int]]:
    """Return the tokens of each row of a batch before its first label, or all of them without labels."""
    asked = batch["attention_mask"].bool()
    if "labels" in batch:
        asked = asked & ((batch["labels"] != IGNORED).cumsum(1) == 0)
    return [tokens[own].tolist() for tokens, own in zip(batch["input_ids"], asked, strict=True)]


def chat_fields(rows: Chats) -> list[dict[str, Any]]:
    """Return the last question of each row, for the entries of ``answers``."""
    return [{PROMPT: without_answer(chat)[-1]["content"]} for chat in rows.chats]


def _check_length(place: str, before: int, max_length: int) -> None:
    if before >= max_length:
        told = f"the answer begins after {before} tokens, and task.max_length is {max_length}, so nothing of it is left"
        raise SubspaceError(f"{place}: {told}; {_LIMITS}")


def _padded(rows: Sequence[Any], value: int = IGNORED) -> Tensor:
    """Return numbers, lists of numbers or lists of such lists as a tensor, padded with ``value``."""
    if not isinstance(rows[0], list):
        return torch.tensor(rows)
    if rows[0] and isinstance(rows[0][0], list):
        flat = _padded([one for row in rows for one in row], value)
        return pad_sequence(list(flat.split([len(row) for row in rows])), batch_first=True, padding_value=value)
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def _ends_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> set[int]:
    """Return the special tokens with which the template ends an answer."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    labels = written(tokenizer, said, template, "a chat of two messages").labels
    return {token for token in labels if token in tokenizer.all_special_ids}


def _positions(model: Any) -> int | None:
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


def _check_decoder(model: Any) -> None:
    """Raise SubspaceError if a token changes the logits before it."""
    one, other = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 5, 7]])
    found, changed = (model(input_ids=tokens.to(model.device)).logits[:, -4:-1] for tokens in (one, other))
    if not _agree(found, changed):
        raise SubspaceError("the model attends to later tokens: this task needs a decoder, which continues texts")


def _check_packing(model: Any, collate: Callable[[list[Any]], Any]) -> None:
    """Raise SubspaceError if rows packed into one attend to each other."""
    rows = [[3, 4, 5, 6, 7], [7, 3], [5, 5, 4]]
    joined = [token for row in rows for token in row]
    batch = collate([{"input_ids": joined, "labels": joined, "seq_lengths": [len(row) for row in rows]}])
    batch = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    packed = model(**batch).logits[0, -len(joined) :]
    alone = torch.cat(
        [model(input_ids=torch.tensor([row], device=model.device)).logits[0, -len(row) :] for row in rows]
    )
    if not _agree(packed, alone):
        raise SubspaceError("packed rows would attend to each other in this model: leave task.packing out")


def _agree(one: Tensor, other: Tensor) -> bool:
    """Return whether logits are equal up to rounding, also that of quantised activations."""
    return float((one - other).abs().max()) < 1e-2 * float(other.abs().max())
