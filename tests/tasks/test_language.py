"""Tasks of language models: what is learnt of a chat, packed rows, choices, numbers, and what cannot be used."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks import Task
from subspace_tuning.tasks.commonsense import first_named
from subspace_tuning.tasks.likelihood import answer_losses, choice_scores, shares_prompts
from subspace_tuning.tasks.maths import number_in
from subspace_tuning.tasks.templates import ALPACA, written
from subspace_tuning.tuner.loss import IGNORED

from .decoders import CHATML, FORGETFUL, MARKED, SIZE, decoder, tokenizer

quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text("abc <|é中\n0", min_size=1, max_size=8).filter(str.strip)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def chat(pairs: list[tuple[str, str]], system: str | None = None) -> list[dict[str, str]]:
    """Return a chat of questions and answers."""
    said = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in pairs:
        said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return said


def learnt(labels: list[int]) -> list[list[int]]:
    """Return the stretches of labels."""
    found: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


# What is learnt


@quick
@given(turns, st.none() | words)
@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>\n"), (MARKED, "<|im_end|>"), (ALPACA, "<|im_end|>")]
)
def test_the_answers_alone_are_learnt(
    template: str, end: str, pairs: list[tuple[str, str]], system: str | None
) -> None:
    known = tokenizer()
    tokens, labels = written(known, chat(pairs, system), template, "here")
    assert [known.decode(one) for one in learnt(labels)] == [answer + end for _, answer in pairs]
    assert all(label in (token, IGNORED) for token, label in zip(tokens, labels, strict=True))
    text = known.apply_chat_template(chat(pairs, system), chat_template=template, tokenize=False)
    assert known.decode(tokens) == text


def test_a_template_that_tells_no_answers_is_refused() -> None:
    with pytest.raises(SubspaceError, match=r"^row 3: the chat template does not write message 2 the same"):
        written(tokenizer(), chat([("a", "b"), ("c", "d")]), FORGETFUL, "row 3")


# Packed rows

KINDS = ("llama", "qwen2", "gpt2", "opt", "bloom")


def rows_of(name: str, folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[Task[Any], Any]:
    """Write rows into a file, and return the task with them as it reads them."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task, found = tasks.get(name).configured({"validation": str(file), **options}).prepare(str(file))
    return task, found["train"]


@quick
@given(st.lists(turns, min_size=2, max_size=6))
def test_a_packed_row_is_what_it_is_alone(tmp_path: Path, chats: list[list[tuple[str, str]]]) -> None:
    task, rows = rows_of("instruction", tmp_path, [{"messages": chat(one)} for one in chats], packing=True)
    known, model = tokenizer(), decoder()
    alone = task.encode(rows, known, 300)
    packed = task.for_training(alone, 300)
    batch = task.collator(known)(list(packed))
    with torch.no_grad():
        logits, loss = model(**batch).logits, model(**batch).loss
    kept = []
    for row, lengths in enumerate(packed["seq_lengths"]):
        start = 0
        for length in lengths:
            tokens = batch["input_ids"][row, start : start + length]
            assert torch.allclose(logits[row, start : start + length], _alone(model, tokens), atol=1e-4)
            kept.append(tuple(tokens.tolist()))
            start += length
    assert Counter(kept) == Counter(map(tuple, alone["input_ids"]))
    plain = task.collator(known)(list(alone))
    sums = answer_losses(model, plain["input_ids"], plain["attention_mask"], plain["labels"]).sum(0)
    assert float(loss) == pytest.approx(float(sums[0] / sums[1]), rel=1e-4)


@torch.no_grad()
def _alone(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens[None]).logits[0]
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_packing_is_right_or_refused(kind: str, tmp_path: Path) -> None:
    """The law above for every kind of decoder that `ready` lets through."""
    task, rows = rows_of("instruction", tmp_path, [{"messages": chat([(f"{n}", "ab" * n)])} for n in range(1, 7)])
    packing, known, model = task.configured({"packing": True}), tokenizer(), decoder(kind)
    encoded = packing.for_training(packing.encode(rows, known, 100), 100)
    batch = packing.collator(known)(list(encoded))
    with torch.no_grad():
        first = int(encoded[0]["seq_lengths"][0])
        second = slice(first, first + int(encoded[0]["seq_lengths"][1]))
        leaks = not torch.allclose(
            model(**batch).logits[0, second], _alone(model, batch["input_ids"][0, second]), atol=1e-3
        )
    if leaks:
        with pytest.raises(SubspaceError, match="packed rows would attend to each other"):
            packing.ready(model, known, 100)
    else:
        packing.ready(model, known, 100)
    assert leaks == (kind in ("opt", "bloom"))
    task.ready(model, known, 100)


@pytest.mark.parametrize("config", [peft.PrefixTuningConfig, peft.PromptTuningConfig])
def test_packing_is_refused_with_learnt_prompts(config: Any) -> None:
    model = peft.get_peft_model(decoder(), config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    tasks.get("instruction").ready(model, tokenizer(), 100)
    with pytest.raises(SubspaceError, match="packed rows would attend to each other"):
        tasks.get("instruction").configured({"packing": True}).ready(model, tokenizer(), 100)


def test_an_encoder_is_no_decoder() -> None:
    with pytest.raises(SubspaceError, match="the model attends to later tokens"):
        tasks.get("maths").ready(decoder("bert"), tokenizer(), 100)


# Choices and answers


tokens = st.lists(st.integers(4, SIZE - 1), min_size=1, max_size=5)


@quick
@given(st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=3))
def test_the_score_of_a_choice_is_its_log_probability(rows: list[tuple[list[int], list[list[int]]]]) -> None:
    model = decoder()
    prompts, choices = [prompt for prompt, _ in rows], [options for _, options in rows]
    with torch.no_grad():
        found = [choice_scores(model, prompts, choices, together) for together in (True, False)]
    for row, (prompt, options) in enumerate(rows):
        for number in range(found[0].shape[1]):
            wanted = _log_probability(model, prompt, options[number]) if number < len(options) else -math.inf
            for scores in found:
                assert float(scores[row, number]) == pytest.approx(wanted, rel=1e-4)


def _log_probability(model: Any, prompt: list[int], option: list[int]) -> float:
    logits = _alone(model, torch.tensor([*prompt, *option])).log_softmax(-1)
    return sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(option))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_shared_where_that_is_right(kind: str) -> None:
    model = decoder(kind)
    prompts, choices = [[9, 8, 7, 6], [5]], [[[4, 2], [4, 9, 2], [5, 2]], [[6, 2]]]
    with torch.no_grad():
        apart = choice_scores(model, prompts, choices, together=False)
        found = choice_scores(model, prompts, choices, shares_prompts(model))
    assert torch.allclose(found.exp(), apart.exp(), rtol=1e-3)
    assert shares_prompts(model) == (kind != "bloom")
    learnt = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert not shares_prompts(learnt)


def test_a_choice_that_begins_another_does_not_win_by_being_shorter() -> None:
    """Ends count: after "answer1" the model may be sure to go on with "0"."""
    names = [f"answer{number}" for number in range(1, 12)]
    listed = "/".join(names)
    rows = [{"instruction": f"?\n\nAnswer format: {listed}", "answer": name} for name in names * 2]
    task = tasks.get("commonsense").settled(*_records(rows))
    known = tokenizer()
    encoded = task.encode(task.rows(*_records(rows)), known, 300)
    texts = [[known.decode(one) for one in row] for row in encoded["choices"]]
    assert texts == [[f"{name}<|im_end|>" for name in names]] * len(rows)
    assert not any(one != other and other.startswith(one) for one in texts[0] for other in texts[0])


def _records(rows: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    from subspace_tuning.tasks.data.records import Records

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Records("rows", columns, range(1, len(rows) + 1)), [row["answer"] for row in rows]


@quick
@given(st.lists(tokens, min_size=1, max_size=5))
def test_a_batch_writes_what_each_prompt_gets_alone(prompts: list[list[int]]) -> None:
    model, known = decoder(), tokenizer()
    task = tasks.get("instruction").configured({"max_new_tokens": 6}).ready(model, known, 100)
    collate = task.collator(known)

    def answered(asked: list[list[int]]) -> list[list[int]]:
        found = task.generate(model, collate([{"input_ids": prompt} for prompt in asked])).tolist()
        return [[token for token in row if token != IGNORED] for row in found]

    together = answered(prompts)
    assert together == [answered([prompt])[0] for prompt in prompts]
    assert all(len(one) <= 6 and 2 not in one for one in together)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are 3 + 6.8 = 9.8 gallons. The answer is 9.8.", 9.8),
        ("2/2=<<2/2=1>>1 bolt\n#### 3", 3),
        ("#### 1,234", 1234),
        ("so she pays $1,234,567.50", 1234567.5),
        ("the change is -4", -4),
        ("x=-4.5", -4.5),
        ("\N{MINUS SIGN}7 degrees", -7),
        ("-$5", -5),
        ("$-5", -5),
        ("16-3", 3),  # a difference, and no -3
        ("(2)-3", 3),
        ("1, 2, 3", 3),
        ("1,2", 2),
        (".5 of it", 0.5),
        ("50% of them", 50),
        ("#### 18 of 20", 18),
        ("10 is the answer ####", 10),
        ("no number", math.nan),
        ("", math.nan),
    ],
)
def test_the_number_of_a_text(text: str, number: float) -> None:
    assert number_in(text) == pytest.approx(number, nan_ok=True)


@quick
@given(
    st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["{}", "The answer is {}.", "1 + 2\n#### {}", "= {}, so"])
)
def test_a_number_is_read_as_it_is_written(number: Any, text: str) -> None:
    assert number_in(text.format(f"{number:,}")) == number_in(text.format(number)) == float(number)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the correct answer is answer10", "answer10"),
        ("answer1", "answer1"),
        ("Answer2, not answer1", "answer2"),
        ("untrue", None),
        ("answer11", None),
        ("", None),
    ],
)
def test_the_choice_that_a_text_names(text: str, name: str | None) -> None:
    assert first_named(text, ["answer1", "answer10", "answer2", "true"]) == name


def test_maths_are_right_within_a_thousandth() -> None:
    found = tasks.get("maths").score(np.array([6.0, 6.0004, 6.01, np.nan]), np.array([6.0] * 4))
    assert (found["accuracy"], found["without_number"]) == (0.5, 0.25)


# What cannot be used

SAID = {"role": "assistant", "content": "b"}
ASKED = {"role": "user", "content": "a"}


def said(*messages: Any) -> dict[str, Any]:
    """Return a row of messages."""
    return {"messages": list(messages)}


def asked(instruction: str, output: str, answer: Any) -> dict[str, Any]:
    """Return a row in the form of LLM-Adapters."""
    return {"instruction": instruction, "input": "", "output": output, "answer": answer}


CHAT, TRUE, ONE = said(ASKED, SAID), asked("a", "x true", "true"), asked("a", "b 1", "1")
OF_TWO = "Answer format: true/false"
# A task, a row that can be used, one that cannot, and what is told of it.
BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "no answer in a chat": ("instruction", CHAT, said(ASKED), "the last message is of role 'user'"),
    "an unknown role": ("instruction", CHAT, said({"role": "bot", "content": "a"}), "message 1 has the role 'bot'"),
    "no content": ("instruction", CHAT, said(ASKED, SAID | {"content": " "}), "message 2 has no content"),
    "content that is no text": ("instruction", CHAT, said(ASKED | {"content": 3}, SAID), "has the content 3, which"),
    "no messages": ("instruction", CHAT, said(), "which is not a chat"),
    "no chat": ("instruction", CHAT, {"messages": {"a": 1}}, "which is not a chat"),
    "a long prompt": ("instruction", CHAT, said(ASKED | {"content": "a" * 300}, SAID), "so nothing of it is left"),
    "an empty answer": ("instruction", {"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": ""}, "has no text"),
    "no answer": ("commonsense", TRUE, asked("a", "x true", None), "column 'answer' has no answer"),
    "another end": ("commonsense", TRUE, asked("a", "x true.", "true"), "does not end in the answer, 'true'"),
    "another beginning": ("commonsense", TRUE, asked("a", "y true", "true"), "has 'y ' before the answer"),
    "no choice": ("commonsense", TRUE, asked(OF_TWO, "x maybe", "maybe"), "'maybe', which is not one of the choices"),
    "a long choice": (
        "commonsense",
        TRUE,
        asked("Answer format: true/" + "y" * 40, "x true", "true"),
        "longest choice",
    ),
    "no number": ("maths", ONE, asked("a", "b", "many"), "'many', in which there is no number"),
    "no number behind the mark": (
        "maths",
        {"question": "a", "answer": "#### 1"},
        {"question": "a", "answer": "b ####"},
        "in which there is no number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_told_with_its_place(case: str, tmp_path: Path) -> None:
    name, good, bad, told = BAD[case]
    known = tokenizer()

    def read(rows: list[dict[str, Any]]) -> int:
        task, found = rows_of(name, tmp_path, rows)
        return len(task.encode(found, known, 220))

    assert read([good] * 7) == 7
    with pytest.raises(SubspaceError) as caught:
        read([*[good] * 6, bad])
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'rows.jsonl'}, line 7: ") and told in line and "\n" not in line


def test_a_row_that_is_cut_keeps_some_of_its_answer(tmp_path: Path) -> None:
    task, rows = rows_of("instruction", tmp_path, [{"messages": chat([("a", "b" * 500)])}] * 6)
    encoded = task.encode(rows, tokenizer(), 60)
    assert {*map(len, encoded["input_ids"])} == {60}
    assert all(any(label != IGNORED for label in row) for row in encoded["labels"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda known: setattr(known, "chat_template", None), "has no chat template: set task.template to alpaca"),
        (lambda known: setattr(known, "chat_template", "{{ raise_exception('odd') }}"), "the chat template fails: odd"),
    ],
)
def test_a_template_that_cannot_be_used(spoil: Callable[[Any], None], told: str, tmp_path: Path) -> None:
    task, rows = rows_of("instruction", tmp_path, [CHAT] * 6)
    known = tokenizer()
    spoil(known)
    with pytest.raises(SubspaceError, match=told):
        task.encode(rows, known, 100)
    assert len(task.configured({"template": "alpaca"}).encode(rows, known, 300)) == 6


def test_a_tokenizer_without_padding_pads_by_its_end(tmp_path: Path) -> None:
    task, rows = rows_of("instruction", tmp_path, [{"messages": chat([("a", "b" * n)])} for n in (1, 9)])
    known = tokenizer()
    known.pad_token = None
    encoded = task.encode(rows, known, 100)
    batch = task.collator(known)(list(encoded))
    assert batch["labels"][0].tolist()[: len(encoded[0]["labels"])] == encoded[0]["labels"]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [1 + 2, 9 + 2]  # the ends that are said are learnt
    known.eos_token = None
    with pytest.raises(SubspaceError, match="neither a padding token nor an end token"):
        task.collator(known)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template": "alpacca"}, "did you mean alpaca"),
        ({"template": "nowhere.jinja"}, "a file with a chat template in Jinja"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"scoring": "likelyhood"}, "did you mean likelihood"),
        ({"together": True}, "task.together has no meaning"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SubspaceError, match=told):
        tasks.get("commonsense").configured(options)


def test_a_template_of_a_file_is_the_text_in_it(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(MARKED, encoding="utf-8")
    made = tasks.get("instruction").configured({"template": str(file)})
    assert made.options == {"template": MARKED}
    assert tasks.get("instruction").configured(made.options) == made
