"""English acceptability judgements in the form of GLUE's CoLA, made from templates.

Sentences come in blocks in which every word form occurs as often in acceptable as in unacceptable sentences. So no word
predicts the label, and a classifier must look at how words combine; and since the two splits share only function words,
it cannot learn which content words go together either.

There are two kinds of blocks. A *crossing* combines k rows with k columns, each of which fits one row:

    The lamp is heavy.      *The lamp are heavy.
    The lamps are heavy.    *The lamps is heavy.

A *reordering* has the same words in two orders:

    The nurse quickly fetched the lamp.     *The nurse fetched quickly the lamp.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import Literal, TypeAlias, TypedDict, get_args

from .lexicon import TEST, TRAIN, Draw
from .templates import TEMPLATES, Pair, Template

Split: TypeAlias = Literal["train", "test"]

MAXIMUM_SIZE = 10_000
"""The size that either split can always yield; beyond it the reflexives, the rarest pairs, run out."""


class Example(TypedDict):
    """One row of the data: CoLA's columns, and the phenomenon that the sentence tests."""

    sentence: str
    label: int
    idx: int
    phenomenon: str


PHENOMENA: tuple[str, ...] = tuple(TEMPLATES)
_SHARES = {name: 4 if name == "word_order" else 1 for name in PHENOMENA}
"""Half of the pairs are about word order: a model learns that first, and subtler phenomena only later."""


def _finish(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith("?") else ".")


def _pairs(draw: Draw, templates: Sequence[Template], seen: set[str]) -> Iterator[Pair]:
    """Yield minimal pairs of new sentences. A block with a repeated one is dropped whole, to keep words balanced."""
    while True:
        for template in templates:
            block = template(draw)
            sentences = {sentence for pair in block for sentence in pair}
            if seen.isdisjoint(sentences):
                seen |= sentences
                yield from block


def generate(split: Split, size: int, seed: int) -> list[Example]:
    """Generate `size` distinct sentences of one split, the same ones for the same arguments.

    Half are acceptable; half are about word order, and the other phenomena share the rest (to within a pair). Every
    word form is as frequent in acceptable as in unacceptable sentences, up to the last block of each phenomenon.

    Raises:
        ValueError: `split` is neither "train" nor "test", or `size` is below 1 or above `MAXIMUM_SIZE`.
    """
    if split not in get_args(Split):
        raise ValueError(f'unknown split {split!r}: the splits are "train" and "test"')
    if not 1 <= size <= MAXIMUM_SIZE:
        raise ValueError(
            f"size {size} is out of range: the grammar makes from 1 to about {MAXIMUM_SIZE} sentences per split"
        )
    rng = random.Random(seed)
    draw = Draw(rng, TRAIN if split == "train" else TEST)
    seen: set[str] = set()
    rows: list[tuple[str, int, str]] = []
    pairs_needed = (size + 1) // 2
    ends = [pairs_needed * part // sum(_SHARES.values()) for part in accumulate(_SHARES.values(), initial=0)]
    for phenomenon, start, end in zip(PHENOMENA, ends, ends[1:], strict=False):
        share = end - start
        for good, bad in islice(_pairs(draw, TEMPLATES[phenomenon], seen), share):
            rows += [(good, 1, phenomenon), (bad, 0, phenomenon)]
    rng.shuffle(rows)
    return [
        Example(sentence=_finish(sentence), label=label, idx=idx, phenomenon=phenomenon)
        for idx, (sentence, label, phenomenon) in enumerate(rows[:size])
    ]
