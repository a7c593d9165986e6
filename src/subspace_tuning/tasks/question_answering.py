"""Extractive question answering, from own files in SQuAD's format.

A context longer than the model's input is read in overlapping windows. If the training rows have questions without an
answer, as SQuAD 2 does, the model may predict that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..errors import SubspaceError
from ..extras import needs
from ..tuner.calibration import Batch
from . import text_scores
from .data.records import Records
from .data.squad import Answers, Question, Questions, flat, read_answers
from .intervals import Figure
from .own import OwnTask
from .registry import register
from .rows import Seen
from .spans import Span, Window, best


@dataclass(frozen=True)
class QuestionAnswering(OwnTask[Questions]):
    """The span of a context that answers a question.

    Attributes:
        text: the column of the contexts.
        question: the column of the questions.
        label: the column of the answers.
        stride: the number of tokens shared by two windows; None: a third of ``max_length``.
        max_answer_tokens: the most tokens of an answer.
        n_best: how many answers to each question are reported.
        no_answer: whether a question may have no answer; set from the training rows.
    """

    name = "question_answering"
    primary = "f1"
    model_class: ClassVar[Any] = AutoModelForQuestionAnswering
    task_type: ClassVar[TaskType] = TaskType.QUESTION_ANS

    text: str = "context"
    question: str = "question"
    label: str = "answers"
    stride: int | None = None
    max_answer_tokens: int = 30
    n_best: int = 5
    no_answer: bool = False

    def configured(self, options: Mapping[str, Any]) -> QuestionAnswering:
        """Return the task with these options."""
        made = cast("QuestionAnswering", super().configured(options))
        for name, least in {"stride": 0, "max_answer_tokens": 1, "n_best": 1}.items():
            value = getattr(made, name)
            if value is not None and value < least:
                raise SubspaceError(f"task.{name} is {value}: it must be at least {least}")
        return made

    def unfolded(self, records: Records) -> Records:
        """Return one row per question if the rows are SQuAD's articles."""
        return flat(records, self.text, self.question, self.label)

    def raw_labels(self, records: Records) -> list[Answers]:
        """Return the answers of each row; empty for a question without an answer."""
        contexts = records.texts(self.text, "task.text")
        values = records.column(self.label, "task.label")
        return [
            read_answers(records, row, value, context, self.label)
            for row, (value, context) in enumerate(zip(values, contexts, strict=True))
        ]

    def settled(self, records: Records, labels: list[Answers]) -> QuestionAnswering:
        """Return the task; questions may have no answer if a training row has none."""
        needs(f"task {self.name}", "language", "torchmetrics")
        return replace(self, no_answer=not all(labels))

    def rows(self, records: Records, labels: list[Answers] | None) -> Questions:
        """Return records as questions."""
        contexts = records.texts(self.text, "task.text")
        questions = records.texts(self.question, "task.question")
        ids = records.columns.get("id", [None] * len(records))
        answers: Sequence[Answers | None] = [None] * len(records) if labels is None else labels
        return Questions(
            tuple(
                Question(context, question, known, None if one is None else str(one), records.place(row))
                for row, (context, question, known, one) in enumerate(
                    zip(contexts, questions, answers, ids, strict=True)
                )
            )
        )

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of a question's context and of the question."""
        return (self.text, self.question)

    def rows_of(self, *columns: Sequence[str]) -> Questions:
        """Return a question without an answer for each context and its question."""
        if len(columns) < len(self.text_columns):
            return super().rows_of(*columns)
        contexts, questions = columns
        return Questions(
            tuple(
                Question(context, question, None, None, f"question {number}")
                for number, (context, question) in enumerate(zip(contexts, questions, strict=True), start=1)
            )
        )

    def groups(self, rows: Questions) -> Sequence[Hashable]:
        """Return the contexts: all questions about one belong together."""
        return [one.context for one in rows.rows]

    def encode(self, rows: Questions, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return the windows of each row's context, each after the question.

        Besides the model's inputs, an entry has the number of its row, the characters of each token in the context,
        and the token for "no answer". Labels are the first and last token of the row's first answer, or the token for
        "no answer" twice if the window does not contain all of it.
        """
        stride = self._checked_stride(rows, tokenizer, max_length)
        found = tokenizer(
            [one.question for one in rows.rows],
            [one.context for one in rows.rows],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        entries: list[dict[str, Any]] = []
        for number, row in enumerate(found["overflow_to_sample_mapping"]):
            inputs = {name: found[name][number] for name in tokenizer.model_input_names if name in found}
            tokens = inputs["input_ids"]
            none = tokens.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in tokens else 0
            of_text = [part == 1 for part in found.sequence_ids(number)]
            starts, ends = (
                [place[end] if own else -1 for place, own in zip(found["offset_mapping"][number], of_text, strict=True)]
                for end in (0, 1)
            )
            entry = {**inputs, "row": row, "none": none, "starts": starts, "ends": ends}
            answers = rows.rows[row].answers
            if answers is not None:
                place = _tokens_of(answers[0], starts, ends) if answers else None
                entry |= {"labels": place or [none, none], "holds": place is not None}
            entries.append(entry)
        return Dataset.from_list(entries)

    def _checked_stride(self, rows: Questions, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        if not tokenizer.is_fast:
            raise SubspaceError(
                f"the model's tokenizer does not report the characters of a token: task {self.name} needs one of "
                "transformers' fast tokenizers"
            )
        stride = max_length // 3 if self.stride is None else self.stride
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
        asked = tokenizer([one.question for one in rows.rows], add_special_tokens=False)["input_ids"]
        for one, tokens in zip(rows.rows, asked, strict=True):
            if room - len(tokens) <= stride:
                raise SubspaceError(
                    f"{one.place}: the question has {len(tokens)} tokens, which leaves {max(room - len(tokens), 0)} of "
                    f"task.max_length = {max_length} for a window of the context, and windows share {stride}; raise "
                    "task.max_length, or lower task.stride"
                )
        return stride

    def cut(self, rows: Questions, encoded: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        """Return how many rows have an answer that no window contains whole."""
        if "holds" not in encoded.column_names:
            return 0
        held = {row for row, holds in zip(encoded["row"], encoded["holds"], strict=True) if holds}
        return sum(bool(one.answers) and row not in held for row, one in enumerate(rows.rows))

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Any]], Any]:
        """Return a collator that pads the model's inputs to the longest."""
        pad, names = DataCollatorWithPadding(tokenizer), {*tokenizer.model_input_names, "labels"}
        return lambda entries: pad([{name: value for name, value in one.items() if name in names} for one in entries])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the mean cross-entropy of the first and the last token, and the logits."""
        logits = self.forward(model, batch)
        return nn.functional.cross_entropy(logits.float(), batch["labels"]), {"logits": logits}

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of an answer's first and last token, windows x tokens x 2."""
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        return logits[:, -batch["input_ids"].shape[1] :]  # without a soft prompt before them

    def score(self, predictions: Sequence[str], labels: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return SQuAD's exact match and F1; if some questions have no answer, also for either kind by itself."""
        scores = text_scores.squad(predictions, labels)
        figures = {name: float(of.mean()) for name, of in scores.items()}
        if all(labels) or not any(labels):
            return figures
        has_answer = np.array([bool(wanted) for wanted in labels])
        for kind, questions in {"with_answer": has_answer, "without_answer": ~has_answer}.items():
            figures |= {f"{name}_{kind}": float(of[questions].mean()) for name, of in scores.items()}
        return figures

    def resampled(self, predictions: Sequence[str], labels: Sequence[Sequence[str]]) -> Figure:
        """Return the mean F1 of questions."""
        scores = text_scores.squad(predictions, labels)[self.primary]
        return lambda rows: float(scores[rows].mean())

    def compared(self, seen: Seen[Questions]) -> tuple[list[str], Sequence[Sequence[str]]]:
        """Return the best answer to each question, and the correct ones."""
        found = self._answers(seen)
        texts = [self._predicted(one, *answer) for one, answer in zip(seen.rows.rows, found, strict=True)]
        return texts, seen.rows.known

    def answers(self, seen: Seen[Questions]) -> list[dict[str, Any]]:
        """Return each question with its best answers; the prediction is empty if "no answer" scores higher."""
        answers = []
        for one, (spans, none) in zip(seen.rows.rows, self._answers(seen), strict=True):
            text = self._predicted(one, spans, none)
            listed = [
                {"text": one.context[span.start : span.end], "start": span.start, "probability": span.probability}
                for span in spans
            ]
            answers.append(
                {
                    **({} if one.id is None else {"id": one.id}),
                    self.question: one.question,
                    "predicted": text,
                    "probability": spans[0].probability if text else none.probability,
                    **({"no_answer_probability": none.probability} if self.no_answer else {}),
                    "n_best": listed,
                }
            )
        return answers

    def _answers(self, seen: Seen[Questions]) -> list[tuple[list[Span], Span]]:
        windows: list[list[Window]] = [[] for _ in range(len(seen.rows))]
        for entry, logits in zip(seen.encoded, seen.outputs, strict=True):
            starts, ends = np.asarray(entry["starts"]), np.asarray(entry["ends"])
            windows[entry["row"]].append(Window(logits[: len(starts)], starts, ends, entry["none"]))
        return [best(own, self.max_answer_tokens, self.n_best, none=self.no_answer) for own in windows]

    def _predicted(self, question: Question, spans: list[Span], none: Span) -> str:
        if not spans or (self.no_answer and none.score > spans[0].score):
            return ""
        return question.context[spans[0].start : spans[0].end]

    def baseline(self, train: Questions, rows: Questions) -> dict[str, float]:
        """Return the figures of predicting no answer to every question."""
        return self.score([""] * len(rows), rows.known)


def _tokens_of(answer: tuple[str, int], starts: Sequence[int], ends: Sequence[int]) -> list[int] | None:
    """Return the first and last token of an answer, or None if the tokens do not contain all of it."""
    text, place = answer
    first, behind = place + len(text) - len(text.lstrip()), place + len(text.rstrip())
    before = [token for token, start in enumerate(starts) if 0 <= start <= first]
    after = [token for token, end in enumerate(ends) if end >= behind]
    if not before or not after or ends[before[-1]] <= first:
        return None
    return [before[-1], after[0]]


register(QuestionAnswering())
