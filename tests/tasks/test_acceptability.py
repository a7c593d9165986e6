"""The acceptability data: what its labels promise, and that no shortcut leads to them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning.tasks.data import acceptability
from subspace_tuning.tasks.data.acceptability import MAXIMUM_SIZE, PHENOMENA, Example, Split, generate
from subspace_tuning.tasks.data.lexicon import FUNCTION_WORDS, TEST, TRAIN, Draw, Lexicon
from subspace_tuning.tasks.data.templates import TEMPLATES

SPLITS: tuple[tuple[Split, Lexicon], ...] = (("train", TRAIN), ("test", TEST))

splits = st.sampled_from(["train", "test"])
sizes = st.integers(min_value=1, max_value=600)
seeds = st.integers(min_value=0, max_value=2**32)


def words(sentence: str) -> list[str]:
    return sentence.lower().replace("'s", " 's").rstrip(".?").split()


def by_word(rows: list[Example], label: int) -> Counter[str]:
    return Counter(word for row in rows if row["label"] == label for word in words(row["sentence"]))


@pytest.fixture(scope="module", params=["train", "test"])
def many(request: pytest.FixtureRequest) -> list[Example]:
    return generate(request.param, 6000, seed=7)


@given(split=splits, size=sizes, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_every_draw_is_well_formed(split: Split, size: int, seed: int) -> None:
    rows = generate(split, size, seed)
    assert len(rows) == size
    assert [row["idx"] for row in rows] == list(range(size))
    assert rows == generate(split, size, seed)
    sentences = [row["sentence"] for row in rows]
    assert len(set(sentences)) == size
    labels = Counter(row["label"] for row in rows)
    assert set(labels) <= {0, 1}
    assert abs(labels[0] - labels[1]) <= 1
    shares = Counter(row["phenomenon"] for row in rows)
    assert set(shares) <= set(PHENOMENA)
    assert abs(shares["word_order"] - size / 2) <= 4
    assert all(abs(shares[phenomenon] - size / 8) <= 4 for phenomenon in PHENOMENA if phenomenon != "word_order")
    for sentence in sentences:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert sentence.count(".") + sentence.count("?") == 1
        assert "  " not in sentence


def test_another_seed_gives_other_sentences() -> None:
    first, second = ({row["sentence"] for row in generate("train", 500, seed)} for seed in (0, 1))
    assert len(first & second) < 250


def test_the_caller_s_random_state_is_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    generate("train", 50, seed=0)
    assert random.getstate() == before


def test_splits_share_function_words_only() -> None:
    assert not TRAIN.content_words() & TEST.content_words()
    seen = [{word for row in generate(split, 6000, 0) for word in words(row["sentence"])} for split, _ in SPLITS]
    assert seen[0] & seen[1] <= FUNCTION_WORDS | {"'s"}


@pytest.mark.parametrize(("split", "lexicon"), SPLITS)
def test_only_words_of_the_lexicon_occur(split: Split, lexicon: Lexicon) -> None:
    seen = {word for row in generate(split, 6000, 0) for word in words(row["sentence"])}
    assert seen <= lexicon.content_words() | FUNCTION_WORDS | {"'s"}


def test_function_words_are_all_in_use() -> None:
    seen = {word for split, _ in SPLITS for row in generate(split, 6000, 0) for word in words(row["sentence"])}
    assert seen >= FUNCTION_WORDS


def test_no_word_tells_the_label(many: list[Example]) -> None:
    good, bad = by_word(many, 1), by_word(many, 0)
    # At most the last block of each phenomenon is cut short, and a block has no word more than six times.
    for word in good | bad:
        assert abs(good[word] - bad[word]) <= 2 * len(PHENOMENA), word


@pytest.mark.parametrize(("_split", "lexicon"), SPLITS)
@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_every_block_is_closed_under_its_words(_split: Split, lexicon: Lexicon, phenomenon: str) -> None:
    draw = Draw(random.Random(0), lexicon)
    for template in TEMPLATES[phenomenon]:
        for _ in range(50):
            block = template(draw)
            good, bad = (Counter(word for pair in block for word in words(pair[side])) for side in (0, 1))
            assert good == bad, template.__name__


def test_length_tells_nothing(many: list[Example]) -> None:
    lengths = [Counter(len(words(row["sentence"])) for row in many if row["label"] == label) for label in (0, 1)]
    for length in lengths[0] | lengths[1]:
        assert abs(lengths[0][length] - lengths[1][length]) <= 2 * len(PHENOMENA)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("seed", range(3))
def test_the_promised_maximum_is_reached(split: Split, seed: int) -> None:
    assert len({row["sentence"] for row in generate(split, MAXIMUM_SIZE, seed)}) == MAXIMUM_SIZE


@pytest.mark.parametrize("size", [-1, 0, MAXIMUM_SIZE + 1])
def test_an_impossible_size_names_the_maximum(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size {size} .*{MAXIMUM_SIZE}"):
        generate("train", size, seed=0)


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r'"train" and "test"'):
        generate("dev", 10, seed=0)  # type: ignore[arg-type]


class First(random.Random):
    """Takes the first of everything, so that each template's first block can be written down by hand."""

    def choice(self, seq):
        return seq[0]

    def sample(self, population, k, *, counts=None):
        return list(population)[:k]

    def random(self):
        return 0.9


BY_HAND = {
    "agreement": """
        The nurse often sleeps. | The nurse often sleep.
        The nurses often sleep. | The nurses often sleeps.
        The nurse near the pilot is tired. | The nurse near the pilot are tired.
        The nurses near the pilot are tired. | The nurses near the pilot is tired.
        Is the nurse tired? | Are the nurse tired?
        Are the nurses tired? | Is the nurses tired?
        The nurse and the pilot are tired. | The nurse and the pilot is tired.
        The nurse near the pilot is tired. | The nurse near the pilot are tired.
    """,
    "reflexives": """
        John admired himself yesterday. | John admired herself yesterday.
        Maria admired herself yesterday. | Maria admired himself yesterday.
        The uncle admired himself yesterday. | The uncle admired themselves yesterday.
        The uncles admired themselves yesterday. | The uncles admired himself yesterday.
        Maria's uncle admired himself. | Maria's uncle admired herself.
        John's aunt admired herself. | John's aunt admired himself.
        Maria said that John admired himself. | Maria said that John admired herself.
        John said that Maria admired herself. | John said that Maria admired himself.
        John admired himself yesterday. | Himself admired John yesterday.
    """,
    "arguments": """
        The nurse received the box yesterday. | The nurse slept the box yesterday.
        The nurse slept yesterday. | The nurse received yesterday.
        The nurse received the box yesterday. | The nurse vanished the box yesterday.
        The box vanished yesterday. | The box received yesterday.
        The nurse handed the pilot the plan. | The nurse explained the pilot the plan.
        The nurse explained the plan to the pilot. | The nurse informed the plan to the pilot.
        The nurse informed the pilot of the plan. | The nurse handed the pilot of the plan.
        The nurse admired the pilot yesterday. | The nurse listened the pilot yesterday.
        The nurse listened to the pilot yesterday. | The nurse admired to the pilot yesterday.
    """,
    "word_order": """
        When did the nurse receive the box? | When the nurse did receive the box?
        The pilot knew when the nurse had received the box. | The pilot knew when had the nurse received the box.
        The nurse quickly received the box. | The nurse received quickly the box.
        The nurse received the big wooden box. | The nurse received the wooden big box.
        The nurse received all these big boxes. | The nurse received these all big boxes.
        The nurse did not receive the box. | The nurse not did receive the box.
        The nurse picked it up yesterday. | The nurse picked up it yesterday.
    """,
    "determiners": """
        The nurse received this box. | The nurse received these box.
        The nurse received these boxes. | The nurse received this boxes.
        This nurse slept yesterday. | These nurse slept yesterday.
        These nurses slept yesterday. | This nurses slept yesterday.
    """,
}


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_first_blocks_are_as_written_by_hand(phenomenon: str) -> None:
    draw = Draw(First(), TRAIN)
    pairs = [pair for template in TEMPLATES[phenomenon] for pair in template(draw)]
    made = [" | ".join(map(acceptability._finish, pair)) for pair in pairs]
    assert made == [line.strip() for line in BY_HAND[phenomenon].strip().splitlines()]
