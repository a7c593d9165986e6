"""The queue: questions that wait while the model is busy share its next call, whatever their adapters."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from ..errors import SubspaceError
from ..tasks import Rows, Seen, Values
from ..training.use import joined, see
from .choices import Choice, acting


class Call(NamedTuple):
    """A call of the model: its number, its rows, and the names of those that answered them."""

    number: int
    rows: int
    adapters: tuple[str, ...]


class Answered(NamedTuple):
    """The answers to a question: one for each row, how many rows were truncated, and the calls that gave them."""

    answers: list[dict[str, Any]]
    truncated: int
    calls: tuple[Call, ...]


@dataclass
class Question:
    """Rows for one choice, and what is known of their answers.

    Attributes:
        columns: the texts of each column.
        choice: what answers.
        future: its answers, once they are there.
    """

    columns: Sequence[Sequence[str]]
    choice: Choice
    future: Future[Answered] = field(default_factory=Future)
    rows: Rows | None = None
    encoded: Any = ()
    outputs: list[Values] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def encode(self) -> None:
        """Encode the rows. Raises SubspaceError if one cannot be."""
        run = self.choice.run
        self.rows = run.task.rows_of(*self.columns)
        self.encoded = run.task.encode(self.rows, run.processor, run.max_length)

    def take(self, output: Values, call: Call) -> None:
        """Take the output for the next encoded row; the last one completes the answers."""
        self.outputs.append(output)
        if call not in self.calls:
            self.calls.append(call)
        if len(self.outputs) == len(self.encoded):
            try:
                self.future.set_result(self._answered())
            except Exception as error:
                self.fail(error)

    def _answered(self) -> Answered:
        run, rows = self.choice.run, self.rows
        outputs = joined([one[None] for one in self.outputs], range(len(self.outputs)))
        assert rows is not None and outputs is not None
        if not np.isfinite(outputs).all():
            raise SubspaceError(f"the outputs of adapter {self.choice.name!r} are NaN or infinite")
        answers = run.task.answers(Seen(rows, self.encoded, outputs, None, run.processor))
        truncated = run.task.cut(rows, self.encoded, run.processor, run.max_length)
        return Answered(answers, truncated, tuple(self.calls))

    def fail(self, error: BaseException) -> None:
        """Let an error be the answer, unless another one is."""
        if not self.future.done():
            self.future.set_exception(error)


class Gathering:
    """One thread that owns the model and answers what waits, in calls of at most ``most`` rows.

    Attributes:
        most: the most rows of a call.
        requests: how many it has taken up.
        calls: how many calls of the model there were.
        mixed: how many of these had rows of several adapters.
        rows: how many rows they had.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.requests = self.calls = self.mixed = self.rows = 0
        self._waiting: SimpleQueue[list[Question] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Gathering:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def ask(self, columns: Sequence[Sequence[str]], choices: Sequence[Choice]) -> list[Future[Answered]]:
        """Queue rows for some choices, and return the answers of each."""
        questions = [Question(columns, choice) for choice in choices]
        self._waiting.put(questions)
        return [one.future for one in questions]

    @property
    def waiting(self) -> int:
        """How many requests wait for the model."""
        return self._waiting.qsize()

    def _work(self) -> None:
        while True:
            requests = [self._waiting.get(), *self._arrived()]
            self.requests += sum(request is not None for request in requests)
            self._answer([one for request in requests for one in request or ()])
            if None in requests:
                return

    def _arrived(self) -> Iterator[list[Question] | None]:
        try:
            while True:
                yield self._waiting.get_nowait()
        except Empty:
            return

    def _answer(self, questions: Sequence[Question]) -> None:
        groups: dict[Any, list[tuple[Question, Any]]] = {}
        for one in questions:
            if not one.future.set_running_or_notify_cancel():  # its client is gone
                continue
            try:
                one.encode()
            except Exception as error:
                one.fail(error)
                continue
            choice = one.choice
            key = (choice.adapter if choice.apart else None, choice.run.task.shared_call)
            groups.setdefault(key, []).extend((one, row) for row in one.encoded)
        for rows in groups.values():
            for start in range(0, len(rows), self.most):
                self._call(rows[start : start + self.most])

    def _call(self, rows: Sequence[tuple[Question, Any]]) -> None:
        """Call the model for rows of questions whose tasks call it alike."""
        choices = [question.choice for question, _ in rows]
        call = Call(self.calls + 1, len(rows), tuple(dict.fromkeys(choice.name for choice in choices)))
        self.calls, self.rows, self.mixed = call.number, self.rows + call.rows, self.mixed + (len(call.adapters) > 1)
        run = choices[0].run
        try:
            with acting(run.model, [choice.adapter for choice in choices]):
                outputs, _ = see(run, [row for _, row in rows])
        except Exception as error:  # the thread must outlive it, and its clients get it
            for question, _ in rows:
                question.fail(error)
        else:
            for (question, _), output in zip(rows, outputs, strict=True):
                question.take(output, call)
