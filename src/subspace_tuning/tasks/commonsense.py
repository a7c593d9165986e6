"""Questions with a few choices, each named in the question: BoolQ, ARC, OpenBookQA and the like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import SubspaceError, nearest
from ..tuner.calibration import Batch
from ..tuner.loss import IGNORED
from .answered import AnsweredTask
from .data.chats import Chats, Message, without_answer
from .data.records import Records
from .language import chat_fields, prompts_of
from .likelihood import choice_scores, shares_prompts
from .registry import register
from .rows import Seen, Values
from .templates import chat_template, prompt, written

SCORINGS = ("likelihood", "generation")
_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*\Z")
_MOST = 20  # more different answers than this are hardly choices


@dataclass(frozen=True)
class Commonsense(AnsweredTask):
    """Questions answered by one of a few choices.

    Attributes:
        scoring: "likelihood" for the most probable choice, "generation" for the first one named in the generated text.
        choices: the choices for rows that name none after "Answer format:"; by default those in the training file.
        stem: the text before every answer, such as "the correct answer is ".
        together: whether all choices of a row share one forward pass, set by ``ready``.
    """

    name = "commonsense"
    primary = "accuracy"
    beside = ("truth", "choices")

    max_new_tokens: int = 32
    scoring: str = "likelihood"
    choices: tuple[str, ...] | None = None
    stem: str = ""
    together: bool = field(default=False, metadata={"option": False})

    @property
    def writes(self) -> bool:
        """Return whether the score depends on generated text."""
        return self.scoring == "generation"

    def configured(self, options: Any) -> Commonsense:
        """Return the task with these options."""
        made = super().configured(options)
        assert isinstance(made, Commonsense)
        if made.scoring not in SCORINGS:
            raise SubspaceError(f"task.scoring is {made.scoring!r}: {nearest(made.scoring, SCORINGS)}")
        return made

    def raw_labels(self, records: Records) -> list[Any]:
        """Return the answers."""
        return self.answers_of(records)

    def settled(self, records: Records, labels: list[Any]) -> Commonsense:
        """Return the task with its choices and the text before every answer."""
        texts = self.learnt(records)
        ended = [text.strip().endswith(end) for text, end in zip(texts, labels, strict=True)]
        if without := [row for row, one in enumerate(ended) if not one]:
            told = f"column {self.output!r} does not end in the answer, {labels[without[0]]!r}"
            records.refuse(without, told, "end it like that, or remove the row")
        stems = [text.strip().removesuffix(end) for text, end in zip(texts, labels, strict=True)]
        if other := [row for row, stem in enumerate(stems) if stem != stems[0]]:
            told = f"column {self.output!r} has {stems[other[0]]!r} before the answer, and the first row {stems[0]!r}"
            records.refuse(other, told, "write the same before every answer")
        answers = tuple(sorted(set(labels)))
        if self.choices is None and len(answers) > _MOST and not all(map(_named, self.asked(records))):
            raise SubspaceError(
                f"{records.where}, column {self.label!r} has {len(answers)} different answers: list the choices in "
                'task.choices, or name them in each row behind "Answer format: "'
            )
        return replace(self, stem=stems[0], choices=self.choices or answers)

    def rows(self, records: Records, labels: list[Any] | None) -> Chats:
        """Return records as chats, with their choices."""
        assert self.choices is not None
        choices = tuple(_named(chat) or self.choices for chat in self.asked(records))
        if labels is None:
            return replace(self.chats(records, None), choices=choices)
        for row, answer in enumerate(labels):
            if answer not in choices[row]:
                told = f"column {self.label!r} has {answer!r}, which is not one of the choices"
                records.refuse([row], told, nearest(answer, choices[row]))
        truths = np.array([one.index(answer) for one, answer in zip(choices, labels, strict=True)], dtype=np.int64)
        said = [self.stem + answer for answer in labels]
        return replace(self.chats(records, said), truths=truths, choices=choices)

    def encode(self, rows: Chats, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the rows as token numbers, with the tokens of their choices and the number of the right one."""
        encoded = super().encode(rows, tokenizer, max_length)
        choices = self._choices(rows, tokenizer, max_length)
        columns = {"choices": choices} | ({"truth": rows.known.tolist()} if rows.labelled else {})
        return Dataset.from_dict(encoded.to_dict() | columns)

    def _choices(self, rows: Chats, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[list[int]]]:
        """Return the tokens of each row's choices, ends included."""
        template = chat_template(tokenizer, self.template)
        assert rows.choices is not None
        found = []
        for chat, names, place in zip(rows.chats, rows.choices, rows.places, strict=True):
            asked = without_answer(chat)
            before = prompt(tokenizer, asked, template, place)
            one = [self._choice(tokenizer, asked, before, template, place, name) for name in names]
            if len(before) + max(map(len, one)) > max_length:
                raise SubspaceError(
                    f"{place}: with its longest choice it has {len(before) + max(map(len, one))} tokens, and "
                    f"task.max_length is {max_length}; raise it, or shorten the row"
                )
            found.append(one)
        return found

    def _choice(
        self,
        tokenizer: PreTrainedTokenizerBase,
        asked: tuple[Message, ...],
        before: list[int],
        template: str,
        place: str,
        name: str,
    ) -> list[int]:
        said = (*asked, {"role": "assistant", "content": self.stem + name})
        tokens, labels = written(tokenizer, said, template, place)
        if tokens[: len(before)] != before or labels[len(before)] == IGNORED:
            raise SubspaceError(f"{place}: the chat template does not write a prompt the same with an answer behind it")
        return tokens[len(before) :]

    def ready(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Commonsense:
        """Return the task with its tokenizer, and whether the choices of a row can share a forward pass."""
        made = super().ready(model, tokenizer, max_length)
        training = model.training
        shared = shares_prompts(model.eval())
        model.train(training)
        assert isinstance(made, Commonsense)
        return replace(made, together=shared)

    @property
    def shared_call(self) -> Hashable:
        """What generated texts depend on; None for likelihoods, since rows have unequal numbers of choices."""
        return (self.max_new_tokens, self.stem) if self.writes else None

    def generate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the probability of each choice within its row, or 1 for the one that the generated text names."""
        choices = [[[int(t) for t in one if t >= 0] for one in row] for row in batch["choices"].tolist()]
        if not self.writes:
            return choice_scores(model, prompts_of(batch), choices, self.together).softmax(dim=1)
        texts = self.texts_of(self.written_by(model, batch).cpu().numpy())
        found = torch.zeros(batch["choices"].shape[:2], dtype=torch.float64, device=batch["choices"].device)
        for row, (text, tokens) in enumerate(zip(texts, choices, strict=True)):
            said = [self._decoded(one).removeprefix(self.stem.strip()).strip() for one in tokens]
            named = first_named(text, said)
            if named is not None:
                found[row, said.index(named)] = 1
        return found

    def _decoded(self, tokens: list[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def predict(self, outputs: Values) -> Values:
        """Return the number of each row's choice; -1 where none is named."""
        return np.where(outputs.max(axis=1) > 0, outputs.argmax(axis=1), -1)

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((predictions == labels).mean())}

    def answers(self, seen: Seen[Chats]) -> list[dict[str, Any]]:
        """Return each row's question with its choice, and what the choices score."""
        rows, outputs = seen.rows, seen.outputs
        assert rows.choices is not None
        found = zip(chat_fields(rows), rows.choices, self.predict(outputs).tolist(), outputs, strict=True)
        return [
            one
            | {
                "predicted": names[number] if number >= 0 else None,
                "probabilities": dict(zip(names, map(float, scores[: len(names)]), strict=True)),
            }
            for one, names, number, scores in found
        ]

    def baseline(self, train: Chats, rows: Chats) -> dict[str, float]:
        """Return the figures of the most frequent answer of the training rows."""
        [(most, _)] = Counter(_answers(train)).most_common(1)
        return {"accuracy": float(np.mean([answer == most for answer in _answers(rows)]))}


def first_named(text: str, names: Sequence[str]) -> str | None:
    """Return the name that occurs first in a text as a word of its own, in any case; None if none does.

    Examples:
        >>> first_named("It is Answer10.", ["answer1", "answer10"])
        'answer10'
    """
    longest = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name)
    found = re.search(rf"(?<!\w)(?:{longest})(?!\w)", text, re.IGNORECASE) if longest else None
    return None if found is None else next(name for name in names if name.lower() == found[0].lower())


def _named(chat: tuple[Message, ...]) -> tuple[str, ...]:
    """Return the choices that a question names."""
    found = _FORMAT.search(chat[-1]["content"])
    return tuple(found[1].split("/")) if found else ()


def _answers(rows: Chats) -> list[str]:
    assert rows.choices is not None
    return [names[number] for names, number in zip(rows.choices, rows.known.tolist(), strict=True)]


register(Commonsense())
