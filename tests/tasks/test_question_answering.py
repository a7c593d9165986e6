"""Questions about texts: SQuAD's two forms, its figures, and texts that are read in parts."""

from __future__ import annotations

import collections
import json
import math
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks import spans, text_scores

from .own_files import TEXT_ROWS, WORDS, write

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "qa"


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm)


def _nested(rows: Any, *, second: bool) -> dict[str, Any]:
    """Rows in the form in which SQuAD is published, one paragraph for each; that of the first or second version."""
    paragraphs = []
    for number, row in enumerate(rows):
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        question = {"id": f"q{number}", "question": row["question"], "answers": answers}
        question |= {"is_impossible": not answers} if second else {}
        paragraphs.append({"context": row["context"], "qas": [question]})
    return {"version": "2.0", "data": [{"title": "one", "paragraphs": paragraphs[:7]}, {"paragraphs": paragraphs[7:]}]}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("second", [False, True])
def test_squads_own_files_hold_the_same_questions(second: bool, indent: int | None, tmp_path: Path) -> None:
    rows = [row for row in TEXT_ROWS["question_answering"] if second or row["answers"]["text"]]
    assert len(rows) == (30 if second else 24)
    (tmp_path / "squad.json").write_text(json.dumps(_nested(rows, second=second), indent=indent), encoding="utf-8")
    task, found = tasks.get("question_answering").prepare(str(tmp_path / "squad.json"))
    same, wanted = tasks.get("question_answering").prepare(write(tmp_path, "jsonl", rows))
    assert task == same and task.no_answer is second  # type: ignore[attr-defined]
    assert {split: part.fingerprint() for split, part in found.items()} == {
        split: part.fingerprint() for split, part in wanted.items()
    }
    assert found["train"].rows[0].id.startswith("q")


def test_questions_about_one_text_are_held_out_together(tmp_path: Path) -> None:
    _, rows = tasks.get("question_answering").prepare(write(tmp_path, "jsonl", TEXT_ROWS["question_answering"]))
    train, validation = ({one.context for one in rows[split].rows} for split in ("train", "validation"))
    assert train and validation and not train & validation
    alone = [row for row in TEXT_ROWS["question_answering"] if row["context"] in list(train)[:1]]
    with pytest.raises(SubspaceError, match=r"rows in 1 groups that stay together: none is left|has 1 rows"):
        tasks.get("question_answering").prepare(write(tmp_path, "jsonl", alone, "alone"))


# Figures


def _normalised(text: str) -> str:
    """As SQuAD's evaluation script has it."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(text: str, wanted: str) -> float:
    found, gold = _normalised(text).split(), _normalised(wanted).split()
    if not found or not gold:
        return float(found == gold)
    same = sum((collections.Counter(found) & collections.Counter(gold)).values())
    return 2 * same / (len(found) + len(gold))


ANSWERS = st.lists(st.sampled_from(["the", "A", "ba", "Ba.", "de", "fi-go", "an", ",", "7"]), max_size=5).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(ANSWERS, st.lists(ANSWERS.filter(bool), max_size=3)), min_size=1, max_size=6))
def test_the_figures_are_those_of_squads_definition(rows: list[tuple[str, list[str]]]) -> None:
    found = text_scores.squad([text for text, _ in rows], [wanted for _, wanted in rows])
    f1 = [max(_f1(text, one) for one in wanted or [""]) for text, wanted in rows]
    exact = [any(_normalised(text) == _normalised(one) for one in wanted or [""]) for text, wanted in rows]
    assert found["exact_match"].tolist() == exact
    assert found["f1"] == pytest.approx(np.array(f1), abs=1e-6)


def test_both_kinds_of_question_have_figures_of_their_own() -> None:
    figures = tasks.get("question_answering").score(["ba", "de", "", ""], [["ba"], ["fi"], ["go"], []])
    assert figures == {
        "exact_match": 0.5,
        "f1": 0.5,
        "exact_match_with_answer": pytest.approx(1 / 3),
        "f1_with_answer": pytest.approx(1 / 3),
        "exact_match_without_answer": 1.0,
        "f1_without_answer": 1.0,
    }


# Texts in parts


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    longest=st.integers(1, 4),
    count=st.integers(1, 9),
    none=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_best_spans_are_those_of_all(sizes: list[int], longest: int, count: int, none: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts, scores, total, begin = [], {}, [], 0
    for size in sizes:
        logits = rng.normal(size=(size + 2, 2))
        starts = np.array([-1, *range(begin, begin + size), -1])
        parts.append(spans.Window(logits, starts, np.where(starts < 0, -1, starts + 1), 0))
        for first in range(1, size + 1):
            for last in range(first, min(first + longest, size + 1)):
                place = int(starts[first]), int(starts[last]) + 1
                score = float(logits[first, 0] + logits[last, 1])
                scores[place] = max(score, scores.get(place, -math.inf))
                total.append(score)
        begin += max(size - 1, 1)  # parts overlap
    nothing = min(float(part.logits[0].sum()) for part in parts)
    found, no_answer = spans.best(parts, longest, count, none=none)
    wanted = sorted(scores, key=lambda place: -scores[place])[:count]
    assert [(one.start, one.end) for one in found] == wanted
    whole = sum(map(math.exp, [*total, *([nothing] if none else [])]))
    assert [one.probability for one in found] == pytest.approx([math.exp(scores[place]) / whole for place in wanted])
    assert no_answer.score == pytest.approx(nothing)
    assert no_answer.probability == pytest.approx(math.exp(nothing) / whole if none else 0.0)


@settings(max_examples=25, deadline=None)
@given(
    words=st.lists(st.sampled_from([*WORDS, "unbelievably", "Ärger", "3,5"]), min_size=1, max_size=60),
    length=st.integers(12, 40),
    stride=st.integers(0, 7),
    data=st.data(),
)
def test_parts_hold_the_whole_text_and_its_answer(
    words: list[str], length: int, stride: int, data: st.DataObject, tokenizer: Any
) -> None:
    task: Any = tasks.get("question_answering").configured({"stride": stride})
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context, start = " ".join(words), len(" ".join([*words[:first], ""]))
    answer = " ".join(words[first : last + 1])
    rows = _questions(context, answer, start)
    encoded = task.encode(rows, tokenizer, length)
    assert all(len(one) <= length for one in encoded["input_ids"])
    held = set()
    for entry in encoded:
        for begin, end in zip(entry["starts"], entry["ends"], strict=True):
            held |= set(range(begin, end))
        one, other = entry["labels"]
        if entry["holds"]:
            assert context[entry["starts"][one] : entry["ends"][other]] == answer
        else:
            assert one == other == entry["none"] == 0
            covers = [begin for begin in entry["starts"] if begin >= 0]
            assert not (min(covers) <= start and max(entry["ends"]) >= start + len(answer))
    assert held == {n for n, letter in enumerate(context) if letter != " "}
    assert task.cut(rows, encoded, tokenizer, length) == (not any(encoded["holds"]))


def _questions(context: str, answer: str, start: int) -> Any:
    from subspace_tuning.tasks.data.squad import Question, Questions

    return Questions((Question(context, "which", ((answer, start),), None, "here"),))


def test_sure_outputs_give_the_answers(tokenizer: Any, tmp_path: Path) -> None:
    """Logits that point at the labels are scored as right, also for questions without an answer."""
    source = write(tmp_path, "jsonl", TEXT_ROWS["question_answering"])
    task, _ = tasks.get("question_answering").configured({"stride": 2}).prepare(source)
    rows = task.read(source)
    encoded = task.encode(rows, tokenizer, 12)
    assert len(encoded) > len(rows)
    logits = np.zeros((len(encoded), 12, 2))
    for number, labels in enumerate(encoded["labels"]):
        for end in (0, 1):
            logits[number, labels[end], end] = 9.0
    seen = tasks.Seen(rows, encoded, logits, np.array(encoded["labels"]), tokenizer)
    assert task.figures(seen)["exact_match"] == 1.0
    for row, answer in zip(TEXT_ROWS["question_answering"], task.answers(seen), strict=True):
        assert [answer["predicted"]] == (row["answers"]["text"] or [""])
        assert len(answer["n_best"]) == 5 and 0 < answer["probability"] <= 1
        assert answer["probability"] == answer["no_answer_probability" if not row["answers"]["text"] else "probability"]
    sure = task.baseline(rows, rows)
    assert sure["exact_match_without_answer"] == 1.0 and sure["f1_with_answer"] == 0.0


# Bad input


def _row(answers: Any, context: Any = "ba de fi", question: Any = "which") -> str:
    return json.dumps({"context": context, "question": question, "answers": answers}) + "\n"


GOOD = _row({"text": ["de"], "answer_start": [3]})
BAD = {
    "no answers": (GOOD + _row(None), "rows.jsonl, line 2: column 'answers' has no answers; write them, or"),
    "elsewhere": (
        GOOD + _row({"text": ["de"], "answer_start": [4]}),
        "line 2: answer 'de' is not in its context at answer_start 4, which has 'e '; it starts at 3",
    ),
    "nowhere": (_row({"text": ["lu"], "answer_start": [0]}), "the context does not contain it"),
    "beyond": (_row({"text": ["de"], "answer_start": [-5]}), "answer 'de' is not in its context at answer_start -5"),
    "no places": (_row({"text": ["de"]}), "line 1: .*not answers; write {"),
    "a bare text": (_row("de"), "line 1: .* is 'de', not answers; write {"),
    "unequal": (_row({"text": ["de"], "answer_start": [3, 3]}), "line 1: .*not answers"),
    "an empty answer": (_row({"text": [" "], "answer_start": [2]}), "column 'answers' has an empty answer"),
    "no question": (GOOD + _row([], question=" "), "line 2: column 'question' has no text"),
    "no text": (_row([], context=None), "line 1: column 'context' has no text"),
    "nothing": ("\n", "rows.jsonl has no rows"),
    "no article": (
        '{"data": [{"paragraphs": [{"context": "ba"}]}]}',
        "row 1: a paragraph is .*, not an object .* 'qas'",
    ),
    "an answer is missing": (
        '{"data": [{"paragraphs": [{"context": "ba", "qas": [{"id": "x7", "question": "?", "answers": []}]}]}]}',
        "rows.jsonl, question x7: column 'answers' has no answers",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_told_with_their_place(case: str, tmp_path: Path) -> None:
    content, told = BAD[case]
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(SubspaceError, match=told) as caught:
        tasks.get("question_answering").prepare(str(tmp_path / "rows.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_question_that_leaves_no_room_is_told_with_its_place(tokenizer: Any, tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl", [*TEXT_ROWS["question_answering"], json.loads(_row([], question="ba " * 20))])
    task, rows = tasks.get("question_answering").configured({"validation": source}).prepare(source)
    told = r"rows\.jsonl, line 31: the question has 20 tokens, which leaves 1 of task\.max_length = 24 for .* share 8;"
    with pytest.raises(SubspaceError, match=told):
        task.encode(rows["train"], tokenizer, 24)


@pytest.mark.parametrize("option", ["stride", "max_answer_tokens", "n_best"])
def test_numbers_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(SubspaceError, match=rf"task\.{option} is -1: it must be at least"):
        tasks.get("question_answering").configured({option: -1})


def test_a_row_is_not_one_text() -> None:
    with pytest.raises(SubspaceError, match="give the rows as a file"):
        tasks.get("question_answering").rows_of(["ba"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets beside the project are not there")
@pytest.mark.parametrize(("name", "rows"), [("squad_subset_train", 4330), ("xquad_en_validation", 1190)])
def test_published_questions_are_read(name: str, rows: int) -> None:
    found: Any = tasks.get("question_answering").read(str(SHARED / f"{name}.jsonl"))
    assert len(found) == rows and all(one.answers for one in found.rows)
