"""Text generation from own files: a language model learns to write an output for each input, and is scored by writing.

Training and scoring use the same prompt. An encoder-decoder reads it and writes the output. A decoder continues it, and
its loss is that of the output tokens alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn, tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from ..errors import SubspaceError
from ..extras import needs
from ..tuner.calibration import Batch
from ..tuner.loss import IGNORED
from . import text_scores
from .data.records import Records, check_text, is_missing, shown
from .data.wanted import Texts
from .decoding import Decoding, generate, left_padded, texts_of
from .intervals import Figure
from .own import OwnTask
from .registry import register
from .rows import Seen

_INPUT = "{input}"  # the place of the input in a prompt; nothing else in braces has a meaning


@dataclass(frozen=True)
class Generation(OwnTask[Texts]):
    """An output text for each input text.

    Attributes:
        text: the column of the inputs.
        label: the column of the outputs. Rows with the same input are several references of one input.
        prompt: the text that the model reads, with ``{input}`` in place of the input. None: the input alone, followed
            by a line break for a decoder.
        max_new_tokens, num_beams, temperature, top_p: see ``Decoding``.
        decoder: whether the model is decoder-only; set from the model's configuration.
        positions: the most tokens that the model can process, None if there is no limit; set likewise.
    """

    name = "generation"
    primary = "chrf"

    text: str = "input"
    label: str = "output"
    prompt: str | None = None
    max_new_tokens: int = 64
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    decoder: bool = False
    positions: int | None = None

    @property
    def writes(self) -> bool:
        """Whether the score depends on generated text."""
        return True

    @property
    def model_class(self) -> Any:
        """The class that loads a decoder, or an encoder-decoder."""
        return AutoModelForCausalLM if self.decoder else AutoModelForSeq2SeqLM

    @property
    def task_type(self) -> TaskType:  # type: ignore[override]
        """Peft's name for the kind of model."""
        return TaskType.CAUSAL_LM if self.decoder else TaskType.SEQ_2_SEQ_LM

    def configured(self, options: Mapping[str, Any]) -> Generation:
        """Return the task with these options."""
        made = cast("Generation", super().configured(options))
        if made.prompt is not None and made.prompt.count(_INPUT) != 1:
            raise SubspaceError(
                f"task.prompt is {shown(made.prompt)}: write {_INPUT} exactly once, in place of the input"
            )
        within = {
            "max_new_tokens": (made.max_new_tokens >= 1, "at least 1"),
            "num_beams": (made.num_beams >= 1, "at least 1"),
            "temperature": (0 <= made.temperature < float("inf"), "0 or a positive number"),
            "top_p": (0 < made.top_p <= 1, "above 0 and at most 1"),
        }
        for name, (fits, wanted) in within.items():
            if not fits:
                raise SubspaceError(f"task.{name} is {getattr(made, name)}: it must be {wanted}")
        return made

    def for_model(self, architecture: PretrainedConfig) -> Generation:
        """Return the task for a decoder or for an encoder-decoder."""
        kind = type(architecture)
        encodes = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
        pair = bool(architecture.is_encoder_decoder) and kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        decoder = not pair and not encodes and kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
        if not (pair or decoder):
            raise SubspaceError(
                f"task {self.name} needs a model that generates text, and a {architecture.model_type} does not: use a "
                "decoder such as Llama, or an encoder-decoder such as T5"
            )
        return replace(self, decoder=decoder, positions=getattr(architecture, "max_position_embeddings", None))

    def raw_labels(self, records: Records) -> list[tuple[str, ...]]:
        """Return the references of each row: its output, or a list of them."""
        found = []
        for row, value in enumerate(records.column(self.label, "task.label")):
            outputs = value if isinstance(value, list) else [value]
            if not outputs or any(map(is_missing, outputs)):
                records.refuse([row], f"column {self.label!r} has no text", "write one, or remove the row")
            for output in outputs:
                if not isinstance(output, str):
                    told = f"column {self.label!r} is {shown(output)}, which is not a text"
                    records.refuse([row], told, "put it in quotation marks")
                check_text(records, row, output)
            found.append(tuple(outputs))
        return found

    def settled(self, records: Records, labels: list[tuple[str, ...]]) -> Generation:
        """Return the task. Raises SubspaceError if the packages that score it are not installed."""
        needs(f"task {self.name}", "language", "rouge-score", "sacrebleu")
        return self

    def prepare(
        self, source: str, *, train_rows: int | None = None, eval_rows: int | None = None
    ) -> tuple[Generation, dict[str, Texts]]:
        """Return the task, with a training row for each output and a validation row for each input."""
        task, rows = super().prepare(source, eval_rows=eval_rows)
        train = rows["train"].apart()
        rows["train"] = train if train_rows is None else train.first(train_rows)
        return cast("Generation", task), rows

    def rows(self, records: Records, labels: list[tuple[str, ...]] | None) -> Texts:
        """Return records as texts. Labelled rows with the same input become one row."""
        inputs = records.texts(self.text, "task.text")
        if labels is None:
            return Texts(inputs, None)
        outputs: dict[str, list[str]] = {}
        for one, wanted in zip(inputs, labels, strict=True):
            outputs.setdefault(one, []).extend(wanted)
        return Texts(tuple(outputs), tuple(map(tuple, outputs.values())))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of the inputs."""
        return (self.text,)

    def rows_of(self, *columns: Sequence[str]) -> Texts:
        """Return the texts as inputs."""
        [texts] = columns
        return Texts(tuple(texts), None)

    def encode(self, rows: Texts, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Return prompts of at most ``max_length`` tokens, sorted by length, with the first output of each as labels.

        A decoder's input is the prompt followed by the output; the labels of the prompt are -100.
        """
        self._check_room(max_length)
        prompts, long = self._prompts(rows.inputs, tokenizer, max_length)
        columns: dict[str, list[Any]] = {"input_ids": prompts, "cut": long}
        if rows.outputs is not None:
            outputs, longer = self._outputs([wanted[0] for wanted in rows.outputs], tokenizer)
            columns["labels"] = outputs
            columns["cut"] = [one or other for one, other in zip(long, longer, strict=True)]
            if self.decoder:
                columns["input_ids"] = [one + other for one, other in zip(prompts, outputs, strict=True)]
                columns["labels"] = [[IGNORED] * len(one) + other for one, other in zip(prompts, outputs, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: len(prompts[row]))
        return Dataset.from_dict({"row": order, **{name: [of[row] for row in order] for name, of in columns.items()}})

    def _check_room(self, max_length: int) -> None:
        held = max_length + self.max_new_tokens if self.decoder else max(max_length, self.max_new_tokens + 1)
        if self.positions is not None and held > self.positions:
            raise SubspaceError(
                f"task.max_length is {max_length} and task.max_new_tokens {self.max_new_tokens}: they need {held} "
                f"positions, and the model has {self.positions}"
            )

    def _prompts(
        self, inputs: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> tuple[list[list[int]], list[bool]]:
        """Return tokenized prompts, and which are truncated; the prompt's text after the input is always kept."""
        prompt = self.prompt or (f"{_INPUT}\n" if self.decoder else _INPUT)
        before, after = prompt.split(_INPUT)
        found = tokenizer([before + one + after for one in inputs], return_special_tokens_mask=True)
        tail = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        prompts, long = [], []
        for tokens, special in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
            marks = next((n for n, mark in enumerate(reversed(special)) if not mark), 0)  # special tokens at the end
            if self.decoder and marks:  # an end token, which no model would continue
                tokens, marks = tokens[:-marks], 0
            long.append(len(tokens) > max_length)
            kept = marks + len(tail)
            if kept >= max_length:
                raise SubspaceError(
                    f"task.max_length is {max_length}, and the prompt has {kept} tokens after the input"
                )
            prompts.append([*tokens[: max_length - kept], *tokens[len(tokens) - kept :]] if long[-1] else tokens)
        return prompts, long

    def _outputs(
        self, outputs: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[list[int]], list[bool]]:
        """Return tokenized outputs with their end token, and which are truncated."""
        if tokenizer.eos_token_id is None:
            raise SubspaceError("the model's tokenizer has no eos token, so the model cannot learn to end a text")
        if self.decoder:
            plain = tokenizer(list(outputs), add_special_tokens=False)["input_ids"]
            tokens = [[*one, tokenizer.eos_token_id] for one in plain]
        else:
            tokens = tokenizer(text_target=list(outputs))["input_ids"]
        most = self.max_new_tokens
        return [one[:most] for one in tokens], [len(one) > most for one in tokens]

    def cut(self, rows: Texts, encoded: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        """Return how many rows have a truncated input or output."""
        return sum(encoded["cut"])

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Any]], Any]:
        """Return a collator that pads on the right, so that the positions of each row start at 0."""
        fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED}

        def collate(entries: list[Any]) -> dict[str, Tensor]:
            batch = {
                name: pad_sequence([tensor(entry[name]) for entry in entries], batch_first=True, padding_value=value)
                for name, value in fill.items()
                if name in entries[0]
            }
            ones = [tensor([1] * len(entry["input_ids"])) for entry in entries]
            return {**batch, "attention_mask": pad_sequence(ones, batch_first=True)}

        return collate

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the mean loss of the output tokens, and the logits.

        This is the model's own loss. The Trainer's label smoothing would remove the labels, from which an
        encoder-decoder builds its decoder's inputs.
        """
        outputs = model(**batch)
        return outputs.loss, {"logits": outputs.logits}

    def generate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the tokens that a model generates for a batch; outputs that follow a prompt are removed first."""
        prompts: Any = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self.decoder:
            read = batch["attention_mask"].bool()
            if "labels" in batch:
                read &= batch["labels"] == IGNORED
            rows = [tokens[own] for tokens, own in zip(batch["input_ids"], read, strict=True)]
            prompts = left_padded(rows, cast("Any", model).config.pad_token_id)
        return generate(model, prompts, self.shared_call, decoder=self.decoder)

    @property
    def shared_call(self) -> Decoding:
        """How texts are generated, which is the same for all rows of a call."""
        return Decoding(self.max_new_tokens, self.num_beams, self.temperature, self.top_p)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits for the batch's tokens; an encoder-decoder's decoder reads the same tokens."""
        if self.decoder:
            return super().forward(model, batch)
        return super().forward(model, {**batch, "decoder_input_ids": batch["input_ids"]})

    def score(self, predictions: Sequence[str], labels: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return chrF, BLEU, ROUGE and the share of exact matches, against all references of each row."""
        return text_scores.overlap(predictions, labels)

    def resampled(self, predictions: Sequence[str], labels: Sequence[Sequence[str]]) -> Figure:
        """Return chrF of rows."""
        return text_scores.chrf(predictions, labels)

    def compared(self, seen: Seen[Texts]) -> tuple[list[str], Sequence[Sequence[str]]]:
        """Return the generated texts and their references."""
        return self._texts(seen), seen.rows.known

    def answers(self, seen: Seen[Texts]) -> list[dict[str, Any]]:
        """Return each input with its generated text."""
        texts = self._texts(seen)
        return [{self.text: one, "predicted": text} for one, text in zip(seen.rows.inputs, texts, strict=True)]

    def _texts(self, seen: Seen[Texts]) -> list[str]:
        of = dict(zip(seen.encoded["row"], texts_of(seen.outputs, seen.processor), strict=True))
        return [of[row] for row in range(len(seen.rows))]

    def baseline(self, train: Texts, rows: Texts) -> dict[str, float]:
        """Return the figures of the most frequent training output."""
        [(text, _)] = Counter(output for outputs in train.known for output in outputs).most_common(1)
        return self.score([text] * len(rows), rows.known)


register(Generation())
