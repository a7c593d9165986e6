"""The acceptability data: what its labels promise, and that no shortcut leads to them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_tuning.tasks import acceptability
from subspace_tuning.tasks.acceptability import MAXIMUM_SIZE, PHENOMENA, Example, Split, generate
from subspace_tuning.tasks.lexicon import FUNCTION_WORDS, TEST, TRAIN, Lexicon

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
    assert max(shares.values()) - min(shares[phenomenon] for phenomenon in PHENOMENA) <= 3
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


def test_function_words_are_all_in_use(many: list[Example]) -> None:
    assert {word for row in many for word in words(row["sentence"])} >= FUNCTION_WORDS - SPLIT_PARTICLES


def test_no_word_tells_the_label(many: list[Example]) -> None:
    good, bad = by_word(many, 1), by_word(many, 0)
    # At most the last block of each phenomenon is cut short, and a block has no word more than six times.
    for word in good | bad:
        assert abs(good[word] - bad[word]) <= 2 * len(PHENOMENA), word


@pytest.mark.parametrize(("_split", "lexicon"), SPLITS)
@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_every_block_is_closed_under_its_words(_split: Split, lexicon: Lexicon, phenomenon: str) -> None:
    draw = acceptability._Draw(random.Random(0), lexicon)
    for template in acceptability._TEMPLATES[phenomenon]:
        for _ in range(50):
            block = template(draw)
            good, bad = (Counter(word for pair in block for word in words(pair[side])) for side in (0, 1))
            assert good == bad, template.__name__


def test_length_tells_nothing(many: list[Example]) -> None:
    lengths = [Counter(len(words(row["sentence"])) for row in many if row["label"] == label) for label in (0, 1)]
    for length in lengths[0] | lengths[1]:
        assert abs(lengths[0][length] - lengths[1][length]) <= 2 * len(PHENOMENA)
