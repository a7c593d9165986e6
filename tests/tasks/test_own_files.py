"""Tasks on own files: the same rows from every form of file, and every bad row told by its place."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from subspace_tuning import tasks
from subspace_tuning.errors import SubspaceError
from subspace_tuning.tasks.data import records

from .own_files import ROWS, TEXT_ROWS, WRITERS, Rows, write

OWN_ROWS = {**ROWS, **TEXT_ROWS}
OWN = tuple(OWN_ROWS)
# Tasks whose rows are no plain table have files of their own.
ELSEWHERE = {
    "image_classification": "test_images.py",
    **dict.fromkeys(("instruction", "commonsense", "maths"), "test_language.py"),
}
FRESH = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def _prints(kind: str, source: str, **options: Any) -> tuple[Any, dict[str, str]]:
    task, rows = tasks.get(kind).configured(options).prepare(source)
    return task.options, {split: part.fingerprint() for split, part in rows.items()}


def test_every_task_on_own_files_is_tested() -> None:
    own = {task.name for task in tasks.every() if "held_out" in getattr(task, "__dataclass_fields__", {})}
    assert own == {*OWN, *ELSEWHERE} and len(own) == len(OWN) + len(ELSEWHERE)
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (Path(__file__).parent / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", OWN)
def test_every_form_of_file_gives_the_same_rows_and_classes(kind: str, tmp_path: Path) -> None:
    found = [_prints(kind, write(tmp_path, form, OWN_ROWS[kind])) for form in WRITERS]
    assert len(found) == 8 and all(one == found[0] for one in found)
    assert found[0][1]["train"] != found[0][1]["validation"]


@pytest.mark.parametrize("kind", OWN)
def test_what_settles_a_task_makes_it_again(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl", OWN_ROWS[kind])
    task, _ = tasks.get(kind).prepare(source)
    again = tasks.get(kind).configured(task.options)
    assert again == task and again.model_settings == task.model_settings
    assert again.read(source).first(3).fingerprint() == task.read(source).first(3).fingerprint()
    assert tasks.get(kind).options == {}


# What a person may write: quotes, line breaks, other scripts, words that readers take for numbers or for nothing.
CELLS = st.one_of(
    st.sampled_from(
        ["01", "1e3", "NaN", "null", "NA", "True", "false", '"', '""', "'", "a,b", "a\tb", "x;y", "#", "-1"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12),
    st.text("\"'\n\r\t,;\\ab", min_size=1, max_size=8),
).filter(lambda text: bool(text.strip()) and not text.startswith("\ufeff"))


@FRESH
@given(texts=st.lists(CELLS, min_size=6, max_size=12), labels=st.lists(CELLS, min_size=2, max_size=3))
def test_nasty_texts_and_labels_come_through_every_form(
    texts: list[str], labels: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("nasty")
    names = [label.strip() for label in labels]
    rows: Rows = [{"text": text, "label": labels[n % len(labels)]} for n, text in enumerate(texts)]
    for form in WRITERS:
        source = write(folder, form, rows)
        if len(set(names)) < 2:
            with pytest.raises(SubspaceError, match="needs two classes"):
                tasks.get("classification").prepare(source)
            continue
        task, _ = tasks.get("classification").prepare(source)
        table = task.read(source)
        assert table.texts == (tuple(texts),)
        assert [task.names[label] for label in table.known] == [names[n % len(names)] for n in range(len(texts))]


@FRESH
@given(lists=st.lists(st.lists(CELLS, max_size=3, unique_by=str.strip), min_size=6, max_size=9))
def test_nasty_lists_of_labels_come_through_every_form(
    lists: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("nasty")
    rows: Rows = [{"text": "ba", "label": [*names, "one", "two"]} for names in lists]
    found = [_prints("multi_label", write(folder, form, rows)) for form in WRITERS]
    assert all(one == found[0] for one in found)
    assert set(found[0][0]["classes"]) == {name.strip() for row in rows for name in row["label"]}


@pytest.mark.parametrize(("true", "false"), [(True, False), (1, 0), (1.5, 0.5)])
def test_labels_that_are_no_texts_are_classes_by_what_is_written(true: Any, false: Any, tmp_path: Path) -> None:
    rows: Rows = [{"text": "ba", "label": true if n % 2 else false} for n in range(8)]
    found = [_prints("classification", write(tmp_path, form, rows)) for form in WRITERS]
    assert all(one == found[0] for one in found)
    assert found[0][0]["classes"] == [str(false), str(true)]


def test_classes_of_a_data_set_have_their_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["world", "sports"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": ["ba"] * 8, "label": [0, 1] * 4}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "rows.parquet")
    for source in ("saved", "rows.parquet"):
        assert _prints("classification", str(tmp_path / source))[0]["classes"] == ["sports", "world"]
    tags = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(names)})
    datasets.Dataset.from_dict({"tokens": [["ba", "de"]] * 8, "tags": [[0, 1]] * 8}, features=tags).save_to_disk(
        tmp_path / "tags"
    )
    assert _prints("token_classification", str(tmp_path / "tags"))[0]["classes"] == ["sports", "world"]


# Splits


def test_the_held_out_rows_are_a_share_drawn_by_seed(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", ROWS["classification"])

    def parts(**options: Any) -> tuple[Any, Any]:
        _, rows = tasks.get("classification").configured(options).prepare(source)
        return rows["train"], rows["validation"]

    train, validation = parts()
    assert (len(train), len(validation)) == (24, 6)
    assert sorted(train.texts[0] + validation.texts[0]) == sorted(row["text"] for row in ROWS["classification"])
    assert parts()[1].fingerprint() == validation.fingerprint() != parts(held_out_seed=1)[1].fingerprint()
    assert [len(part) for part in parts(held_out=0.5)] == [15, 15]
    with pytest.raises(SubspaceError, match="30 rows: none is left"):
        parts(held_out=0.01)


def test_validation_rows_of_their_own_are_taken(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", ROWS["classification"])
    other = write(tmp_path, "jsonl", ROWS["classification"][:4], "other")
    _, rows = tasks.get("classification").configured({"validation": other}).prepare(source, train_rows=9, eval_rows=3)
    assert (len(rows["train"]), len(rows["validation"])) == (9, 3)
    folder = Path(write(tmp_path, "folder", ROWS["classification"]))
    WRITERS["tsv"](folder / "validation.tsv", ROWS["classification"][:5])
    _, rows = tasks.get("classification").prepare(str(folder))
    assert (len(rows["train"]), len(rows["validation"])) == (30, 5)
    with pytest.raises(SubspaceError, match=r"already has validation rows: leave task\.held_out out"):
        tasks.get("classification").configured({"held_out": 0.1}).prepare(str(folder))
    with pytest.raises(SubspaceError, match=r"both given"):
        tasks.get("classification").configured({"held_out": 0.1, "validation": other})


def test_a_pair_of_texts_is_encoded_as_one(tmp_path: Path) -> None:
    rows: Rows = [{"a": "ba de", "b": "fi", "label": n % 2} for n in range(8)]
    task = tasks.get("classification").configured({"text": "a", "text_pair": "b"})
    table = task.read(write(tmp_path, "csv", rows), labelled=False)
    assert table.texts == (("ba de",) * 8, ("fi",) * 8) and table.labels is None
    with pytest.raises(SubspaceError, match="a row has two texts, a and b: give the rows as a file"):
        task.rows_of(["ba"])
    assert task.rows_of(["ba"], ["fi"]).texts == (("ba",), ("fi",))


def test_every_task_whose_rows_are_texts_takes_them_by_column() -> None:
    found = {task.name: task for task in tasks.every() if task.text_columns}
    assert found.keys() >= {*ROWS, "mrpc", "generation", "question_answering", "instruction", "commonsense", "maths"}
    for name, task in found.items():
        task = task.configured({"choices": ["yes", "no"]} if name == "commonsense" else {})
        rows = task.rows_of(*[["ba de", "fi"]] * len(task.text_columns))
        assert len(rows) == 2 and rows.fingerprint() != rows.first(1).fingerprint()


# Figures


def test_rarer_classes_count_more(tmp_path: Path) -> None:
    rows: Rows = [{"text": "ba", "label": "rare" if n % 5 == 0 else "usual"} for n in range(20)]
    source = write(tmp_path, "csv", rows)
    task, _ = tasks.get("classification").configured({"class_weights": True}).prepare(source)
    assert task.options["weights"] == [20 / (2 * 4), 20 / (2 * 16)] and task.loss is not None
    plain, _ = tasks.get("classification").prepare(source)
    assert plain.loss is None


def test_a_perfect_prediction_has_the_best_figure() -> None:
    classes = {"classes": ["a", "b", "c"]}
    numbers: dict[str, tuple[Any, dict[str, Any]]] = {
        "classification": (np.array([0, 1, 2, 1]), classes),
        "regression": (np.array([1.0, 2.0, 4.0]), {}),
        "multi_label": (np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]]), classes),
        "token_classification": (np.array([[0, 1, -100], [1, -100, 0]]), classes),
    }
    cases = {kind: (wanted, np.zeros_like(wanted), wanted, options) for kind, (wanted, options) in numbers.items()}
    cases["question_answering"] = (["the ba", ""], ["ba", "ba"], [["Ba.", "de"], []], {})
    cases["generation"] = (["ba de fi go", "ne"], ["ba ba ba", "go"], [["lu", "ba de fi go"], ["ne"]], {})
    assert set(cases) == set(OWN)
    for kind, (right, wrong, wanted, options) in cases.items():
        task = tasks.get(kind).configured(options)
        assert task.score(right, wanted)[task.primary] == pytest.approx(1.0)
        worse = task.score(wrong, wanted)
        assert worse[task.primary] < 1.0 and all(math.isfinite(figure) for figure in worse.values())


def test_a_number_is_learnt_in_units_of_its_deviation(tmp_path: Path) -> None:
    task, rows = tasks.get("regression").prepare(write(tmp_path, "csv", ROWS["regression"]))
    labels = np.concatenate([rows["train"].known, rows["validation"].known])
    assert labels.mean() == pytest.approx(0.0) and labels.std() == pytest.approx(1.0)
    assert sorted(task.values(labels)) == pytest.approx(sorted(row["label"] for row in ROWS["regression"]))


class _Pieces:
    """A tokenizer that cuts words into letters and leaves nothing of a word "!"."""

    is_fast = True

    def __call__(self, sentences: Any, max_length: int, **kwargs: Any) -> Any:
        ids = [
            [None, *(n for n, word in enumerate(words) for letter in word if letter != "!"), None][:max_length]
            for words in sentences
        ]
        found = transformers.BatchEncoding({"input_ids": [[0] * len(one) for one in ids]})
        found.word_ids = lambda row: ids[row]  # type: ignore[method-assign]
        return found


def test_a_words_class_stands_at_its_first_piece() -> None:
    task = tasks.get("token_classification").configured({"classes": ["O", "K"]})
    rows = task.rows_of(["ab ! c de"])
    encoded = task.encode(rows, _Pieces(), 6)
    assert encoded["labels"] == [[-100, 0, -100, 2, 3, -100]]
    logits = np.array([[[0, 9], [9, 0], [0, 9], [0, 9], [9, 0], [0, 9]]], dtype=float)
    [answer] = task.answers(tasks.Seen(rows, encoded, logits, None, _Pieces()))
    assert answer["tokens"] == ["ab", "!", "c", "de"] and answer["predicted"] == ["O", None, "K", "O"]
    assert task.encode(rows, _Pieces(), 4)["labels"] == [[-100, 0, -100, 2]]


# Bad input

TABLE = "text,label\nba,x\nde,y\n"
BAD: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "empty": ("rows.csv", "", {}, "rows.csv is empty"),
    "no rows": ("rows.csv", "text,label\n", {}, "rows.csv has no rows"),
    "blank": ("rows.jsonl", "\n\n", {}, "rows.jsonl has no rows"),
    "binary": ("rows.csv", b"text,label\nba,\x00x\n", {}, "rows.csv, line 2: it contains a null byte"),
    "another encoding": ("rows.csv", b"text,label\nba,x\nK\xe4se,y\n", {}, "line 3: byte 0xe4 is not UTF-8: save"),
    "UTF-16": ("rows.csv", TABLE.encode("utf-16"), {}, "rows.csv is in UTF-16: save it in UTF-8"),
    "ending": ("rows.xlsx", "PK", {}, r"rows.xlsx ends in '.xlsx': readable files end in .csv, .tsv"),
    "damaged parquet": ("rows.parquet", "PAR1", {}, "rows.parquet cannot be read"),
    "damaged JSON": (
        "rows.jsonl",
        '{"text": "ba", "label": "x"}\n{no\n',
        {},
        "rows.jsonl cannot be read: line 2 is not",
    ),
    "no objects": ("rows.jsonl", '{"text": "ba", "label": "x"}\n[1]\n', {}, "rows.jsonl, line 2: .* is not an object"),
    "no such column": (
        "rows.csv",
        TABLE,
        {"label": "lable"},
        "no column 'lable', did you mean label.* task.label names",
    ),
    "no such text": ("rows.csv", TABLE, {"text": "texts"}, "no column 'texts', did you mean text.* task.text names"),
    "semicolons": ("rows.csv", TABLE.replace(",", ";"), {}, "its cells seem to be separated by semicolons"),
    "column twice": ("rows.csv", "text,text,label\na,b,x\n", {}, "two columns 'text': rename one"),
    "comma in a text": ("rows.csv", TABLE + "fi, go,x\n", {}, "line 4: 3 cells under 2 columns; put a text"),
    "open quotation": ("rows.csv", TABLE + '"fi,x\n', {}, "line 4: unexpected end of data; put a text"),
    "line after a break": ("rows.csv", 'text,label\n"ba\nde",x\nfi,\n', {}, "rows.csv, line 4: column 'label' has no"),
    "no label": ("rows.csv", TABLE + "fi,\ngo, \n", {}, r"line 4: column 'label' has no label \(and so in 1 more\)"),
    "null label": ("rows.jsonl", '{"text": "ba", "label": null}\n', {}, "line 1: column 'label' has no label"),
    "NaN label": ("rows.jsonl", '{"text": "ba", "label": NaN}\n', {}, "line 1: column 'label' has no label"),
    "no text": ("rows.csv", TABLE + ",x\n", {}, "line 4: column 'text' has no text; write one"),
    "text no text": ("rows.json", '[{"text": 1, "label": 2}, {"text": "a", "label": 3}]', {}, "row 1: .* is 1, which"),
    "surrogate": (
        "rows.jsonl",
        '{"text": "\\ud800", "label": 2}\n{"text": "b", "label": 3}',
        {},
        "line 1: a text has half a surrogate",
    ),
    "one class": ("rows.csv", "text,label\nba,x\nde,x\n", {}, "needs two classes, and this one has 'x'"),
    "outside the list": (
        "rows.csv",
        TABLE,
        {"classes": ["x", "z"]},
        "line 3: column 'label' has 'y', which is not one of",
    ),
    "class twice": ("rows.csv", TABLE, {"classes": ["x", "y", "x"]}, "task.classes has 'x' twice"),
    "all different": (
        "rows.csv",
        "text,label\n" + "".join(f"ba,{n}\n" for n in range(99)),
        {},
        "has 99 different labels in 99 rows: name another column",
    ),
    "several": ("rows.jsonl", '{"text": "ba", "label": ["x"]}\n', {}, "is not one class; use task.name=multi_label"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_told_with_their_place_and_the_way_out(case: str, tmp_path: Path) -> None:
    name, content, options, told = BAD[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SubspaceError, match=told) as caught:
        tasks.get("classification").configured(options).prepare(str(tmp_path / name))
    assert "\n" not in str(caught.value)


KINDS: dict[str, tuple[str, str, str]] = {
    "no number": ("regression", "text,label\nba,1\nde,2\nfi,3 EUR\n", "line 4: column 'label' is '3 EUR', which is no"),
    "not finite": (
        "regression",
        "text,label\nba,1\nde,inf\n",
        "line 3: column 'label' is 'inf', which is not a number",
    ),
    "decimal comma": ("regression", 'text,label\nba,"1,5"\nde,2\n', "line 2: .* write it as 1234.5"),
    "constant": ("regression", "text,label\nba,2\nde,2\n", "all 2 numbers are 2"),
    "words and tags": (
        "token_classification",
        "tokens,tags\nba de,O\n",
        "line 2: column 'tokens' has 2 words and 'tags' 1",
    ),
    "no words": ("token_classification", "tokens,tags\n,O\n", "line 2: column 'tokens' has no words"),
    "no tags": ("token_classification", "tokens,tags\nba,\n", "line 2: column 'tags' has no labels"),
    "one label": ("multi_label", 'text,label\nba,"x"\nde,\n', "needs two classes"),
}


@pytest.mark.parametrize("case", KINDS)
def test_rows_that_a_kind_cannot_use_are_told(case: str, tmp_path: Path) -> None:
    kind, content, told = KINDS[case]
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(SubspaceError, match=told) as caught:
        tasks.get(kind).prepare(str(tmp_path / "rows.csv"))
    assert "\n" not in str(caught.value)


def test_a_label_of_the_validation_rows_that_training_has_not_is_told(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", ROWS["classification"])
    other = write(tmp_path, "csv", [{"text": "ba", "label": "Kase"}], "other")
    with pytest.raises(SubspaceError, match=r"other\.csv, line 2: .* 'Kase', which is not one .*; did you mean Käse"):
        tasks.get("classification").configured({"validation": other}).prepare(source)


def test_data_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "csv", ROWS["classification"], "news")
    classification = tasks.get("classification")
    with pytest.raises(SubspaceError, match=r"data 'nwes\.csv' does not exist: did you mean news\.csv"):
        classification.prepare("nwes.csv")
    with pytest.raises(SubspaceError, match=r"needs task\.data"):
        classification.prepare("glue")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SubspaceError, match="folder has no train, validation or test file"):
        classification.prepare("folder")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(
        SubspaceError, match=r"no file or folder 'me/mine', and the hub has no such data: no network; give"
    ):
        classification.prepare("me/mine")


def test_spaces_around_names_and_classes_are_ignored(tmp_path: Path) -> None:
    rows = [f"ba {number}, {'x' if number % 2 else ' y '}" for number in range(10)]
    (tmp_path / "rows.csv").write_text("\n".join(["text, category", *rows]), encoding="utf-8")
    task, _ = tasks.get("classification").configured({"label": "category"}).prepare(str(tmp_path / "rows.csv"))
    assert task.options["classes"] == ["x", "y"]


def test_labels_stand_between_something() -> None:
    with pytest.raises(SubspaceError, match=r"task\.separator is empty"):
        tasks.get("multi_label").configured({"separator": ""})


@pytest.mark.parametrize("task", ["cola", "regression"])
def test_an_option_that_a_task_does_not_know_is_refused(task: str) -> None:
    with pytest.raises(SubspaceError, match=rf"task\.classes has no meaning with task {task}: leave it out"):
        tasks.get(task).configured({"classes": ["a", "b"]})


@pytest.mark.parametrize("kind", OWN)
def test_an_option_of_another_type_is_refused(kind: str) -> None:
    """As a damaged file beside an adapter may have it."""
    options = {field.name for field in dataclasses.fields(tasks.get(kind))}  # type: ignore[arg-type]
    assert len(options) >= 6
    for name in options:
        for value in ({}, [[]], [{}], object):  # none of which any option takes
            with pytest.raises(SubspaceError, match=rf"task\.{name} is .*, which task {kind} cannot take"):
                tasks.get(kind).configured({name: value})


def test_every_ending_has_a_writer() -> None:
    assert {ending.removeprefix(".") for ending in records.READERS} < set(WRITERS)
