"""English acceptability judgements in the form of GLUE's CoLA, made from templates: `sentence`, `label` (1 acceptable), `idx`.

Sentences come in blocks that are closed under their own words: whatever word form stands in an acceptable sentence of a block
stands as often in an unacceptable one. So no word says anything about the label, and a classifier has to look at how words stand
together; and as the two splits share function words only, it cannot learn which content words go together either.

Two kinds of blocks do this. A *crossing* combines k rows with k columns of which each fits one row:

    The lamp is heavy.      *The lamp are heavy.
    The lamps are heavy.    *The lamps is heavy.

A *reordering* has the same words twice:

    The nurse quickly fetched the lamp.     *The nurse fetched quickly the lamp.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias, TypedDict, TypeVar, get_args

from subspace_tuning.tasks.lexicon import TEST, TRAIN, Lexicon, Noun

Split: TypeAlias = Literal["train", "test"]
Pair: TypeAlias = tuple[str, str]
"""A minimal pair, acceptable first, as yet without capital and full stop."""
Block: TypeAlias = list[Pair]

MAXIMUM_SIZE = 20_000
"""What either split yields for sure; the templates make more, but the smaller ones run dry and the mixture tilts."""


class Example(TypedDict):
    """One row of the data: CoLA's columns, and the phenomenon the sentence is about."""

    sentence: str
    label: int
    idx: int
    phenomenon: str


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Draw:
    """Draws words and phrases from one split's lexicon."""

    rng: random.Random
    words: Lexicon

    def one(self, options: Sequence[_T]) -> _T:
        return self.rng.choice(options)

    def people(self, count: int) -> list[Noun]:
        """Distinct people, a third of them with an adjective, which keeps distances between words from being fixed."""
        nouns = self.rng.sample(self.words.people, count)
        adjectives = self.rng.sample(self.words.person_adjectives, count)
        return [
            Noun(f"{adjective} {noun.singular}", f"{adjective} {noun.plural}") if self.rng.random() < 1 / 3 else noun
            for noun, adjective in zip(nouns, adjectives, strict=True)
        ]

    def persons(self, count: int) -> list[str]:
        """Distinct people in the singular."""
        return [noun.singular for noun in self.people(count)]

    def thing(self) -> str:
        """A thing or some, to follow "the"."""
        return self.one(self.one(self.words.things))

    def quality(self, *phrases: str) -> str:
        """A person's adjective that none of the phrases has already: "the lazy nurse is lazy" would be odd."""
        return self.one([word for word in self.words.person_adjectives if word not in " ".join(phrases).split()])

    def near(self) -> str:
        return self.one(("near", "behind", "beside"))


_Template: TypeAlias = Callable[[_Draw], Block]
_TEMPLATES: dict[str, list[_Template]] = {}


def _template(phenomenon: str) -> Callable[[_Template], _Template]:
    def register(template: _Template) -> _Template:
        _TEMPLATES.setdefault(phenomenon, []).append(template)
        return template

    return register


def _cross(rows: Sequence[str], columns: Sequence[str], frame: Callable[[str, str], str]) -> Block:
    """Row i goes with column i, and is wrong with column i + 1: so every column is wrong once, too."""
    wrong = [*columns[1:], columns[0]]
    return [(frame(row, fits), frame(row, other)) for row, fits, other in zip(rows, columns, wrong, strict=True)]


# Subject and verb. In most templates another noun, of either number, stands nearer to the verb than the subject does.


@_template("agreement")
def _agreement_across_a_place(d: _Draw) -> Block:
    if d.one((True, False)):
        subject, other = d.people(2)
        adjective = d.quality(*subject, *other)
    else:
        subject, other = d.rng.sample(d.words.things, 2)
        adjective = d.one(d.words.thing_adjectives)
    middle, forms = f"{d.near()} the {d.one(other)}", d.one((("is", "are"), ("was", "were")))
    return _cross(subject, forms, lambda noun, form: f"the {noun} {middle} {form} {adjective}")


@_template("agreement")
def _agreement_across_a_clause(d: _Draw) -> Block:
    (subject, other), verb = d.people(2), d.one(d.words.judge)
    adjective = d.quality(*subject, *other)
    middle = f"who {verb.past} the {d.one(other)}"
    return _cross(subject, ("is", "are"), lambda noun, form: f"the {noun} {middle} {form} {adjective}")


@_template("agreement")
def _agreement_of_coordinated_subjects(d: _Draw) -> Block:
    first, second = d.persons(2)
    adjective = d.quality(first, second)
    return _cross(
        ("and", d.near()), ("are", "is"), lambda link, form: f"the {first} {link} the {second} {form} {adjective}"
    )


# Reflexives agree with the subject of their own clause.


@_template("reflexives")
def _reflexive_gender_of_names(d: _Draw) -> Block:
    names, verb, time = (d.one(d.words.men), d.one(d.words.women)), d.one(d.words.judge), d.one(d.words.times)
    return _cross(names, ("himself", "herself"), lambda name, self: f"{name} {verb.past} {self} {time}")


@_template("reflexives")
def _reflexive_gender_of_nouns(d: _Draw) -> Block:
    (man, woman), verb, other = d.one(d.words.relatives), d.one(d.words.judge), d.one(d.people(1)[0])
    rows, middle = (man.singular, woman.singular), d.one(("", f"{d.near()} the {other} "))
    return _cross(rows, ("himself", "herself"), lambda noun, self: f"the {noun} {middle}{verb.past} {self}")


@_template("reflexives")
def _reflexive_number(d: _Draw) -> Block:
    relative, verb, time = d.one(d.words.relatives), d.one(d.words.judge), d.one(d.words.times)
    noun, singular = d.one(((relative.male, "himself"), (relative.female, "herself")))
    return _cross(noun, (singular, "themselves"), lambda form, self: f"the {form} {verb.past} {self} {time}")


@_template("reflexives")
def _reflexive_of_the_head_not_the_owner(d: _Draw) -> Block:
    (man, woman), verb = d.one(d.words.relatives), d.one(d.words.judge)
    owners = d.one(d.words.women), d.one(d.words.men)
    if d.one((True, False)):
        rows = f"{owners[0]}'s {man.singular}", f"{owners[1]}'s {woman.singular}"
    else:
        rows = f"the {man.singular} of {owners[0]}", f"the {woman.singular} of {owners[1]}"
    return _cross(rows, ("himself", "herself"), lambda subject, self: f"{subject} {verb.past} {self}")


@_template("reflexives")
def _reflexive_of_the_inner_subject(d: _Draw) -> Block:
    man, woman, verb, say = d.one(d.words.men), d.one(d.words.women), d.one(d.words.judge), d.one(d.words.say)
    rows = f"{woman} {say} that {man}", f"{man} {say} that {woman}"
    return _cross(rows, ("himself", "herself"), lambda start, self: f"{start} {verb.past} {self}")


# What a verb takes: an object or none, which one first, and with which preposition.


@_template("arguments")
def _argument_object_or_none(d: _Draw) -> Block:
    (subject,), thing, time = d.persons(1), d.thing(), d.one(d.words.times)
    verbs = d.one(d.words.handle).past, d.one(d.words.rest).past
    return _cross((f" the {thing}", ""), verbs, lambda rest, verb: f"the {subject} {verb}{rest} {time}")


@_template("arguments")
def _argument_causative(d: _Draw) -> Block:
    (subject,), thing, time = d.persons(1), d.thing(), d.one(d.words.times)
    verbs = d.one(d.words.handle).past, d.one(d.words.happen).past
    frames = f"the {subject} _ the {thing} {time}", f"the {thing} _ {time}"
    return _cross(frames, verbs, lambda frame, verb: frame.replace("_", verb))


@_template("arguments")
def _argument_dative(d: _Draw) -> Block:
    (subject, other), topic = d.persons(2), d.one(d.words.topics)
    verbs = d.one(d.words.give), d.one(d.words.explain), d.one(d.words.inform)
    objects = f"the {other} the {topic}", f"the {topic} to the {other}", f"the {other} of the {topic}"
    return _cross(objects, verbs, lambda both, verb: f"the {subject} {verb} {both}")


@_template("arguments")
def _argument_preposition(d: _Draw) -> Block:
    (subject, other), (verb, preposition) = d.people(2), d.one(d.words.address)
    tail = f"the {d.one(other)} {d.one(d.words.times)}"
    verbs, noun = (d.one(d.words.judge).past, verb), d.one(subject)
    return _cross((tail, f"{preposition} {tail}"), verbs, lambda rest, form: f"the {noun} {form} {rest}")


# Order. These pairs have the same words on both sides.


@_template("word_order")
def _order_of_question_and_clause(d: _Draw) -> Block:
    """Inversion is right in a question and wrong in an embedded one, so that it is no sign of either label."""
    (subject, other), verb, thing = d.persons(2), d.one(d.words.handle), d.thing()
    know, wh = d.one(d.words.know), d.one(("when", "where", "why", "how"))
    auxiliary, form = d.one(("did", "will", "could")), verb.base
    question = (
        f"{wh} {auxiliary} the {subject} {form} the {thing}?",
        f"{wh} the {subject} {auxiliary} {form} the {thing}?",
    )
    auxiliary, form = d.one((("had", verb.participle), ("would", verb.base)))
    start, end = f"the {other} {know} {wh}", f"{form} the {thing}"
    return [question, (f"{start} the {subject} {auxiliary} {end}", f"{start} {auxiliary} the {subject} {end}")]


@_template("word_order")
def _order_of_adverbs(d: _Draw) -> Block:
    # No adjective may follow: "the secretly proud teacher" would be fine.
    subject, manner = d.one(d.words.people).singular, d.one(d.words.manners)
    verb, thing = d.one(d.words.handle), d.thing()
    good = d.one((f"the {subject} {manner} {verb.past} the {thing}", f"the {subject} {verb.past} the {thing} {manner}"))
    bad = d.one((f"the {subject} {verb.past} {manner} the {thing}", f"the {manner} {subject} {verb.past} the {thing}"))
    return [(good, bad)]


@_template("word_order")
def _order_of_adjectives(d: _Draw) -> Block:
    (subject,), verb, thing = d.persons(1), d.one(d.words.handle), d.thing()
    first, second = d.one(d.words.thing_adjectives), d.one(d.words.kind_adjectives)
    start = f"the {subject} {verb.past} the"
    return [(f"{start} {first} {second} {thing}", f"{start} {second} {first} {thing}")]


@_template("word_order")
def _order_of_determiners(d: _Draw) -> Block:
    (subject,), verb, noun = d.persons(1), d.one(d.words.handle), d.one(d.words.things)
    adjective, many = d.one(d.words.thing_adjectives), d.one(("these", "those", "the"))
    good, bad, head = d.one(
        (
            (f"all {many}", f"{many} all", noun.plural),
            (f"both {many}", f"{many} both", noun.plural),
            (f"{many} two", f"two {many}", noun.plural),
            ("such a", "a such", noun.singular),
        )
    )
    start = f"the {subject} {verb.past}"
    return [(f"{start} {good} {adjective} {head}", f"{start} {bad} {adjective} {head}")]


# Determiner and noun.

_BY_NUMBER = (
    ("this", "these"),
    ("that", "those"),
    ("every", "several"),
    ("each", "both"),
    ("one", "two"),
    ("one", "three"),
)


@_template("determiners")
def _determiner_of_an_object(d: _Draw) -> Block:
    (subject,), verb, noun = d.persons(1), d.one(d.words.handle), d.one(d.words.things)
    middle = d.one(("", f"{d.one(d.words.thing_adjectives)} "))
    return _cross(noun, d.one(_BY_NUMBER), lambda form, which: f"the {subject} {verb.past} {which} {middle}{form}")


@_template("determiners")
def _determiner_of_a_subject(d: _Draw) -> Block:
    (noun, other), verb = d.people(2), d.one(d.words.judge)
    return _cross(noun, d.one(_BY_NUMBER), lambda form, which: f"{which} {form} {verb.past} the {other.singular}")


PHENOMENA: tuple[str, ...] = tuple(_TEMPLATES)


def _finish(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith("?") else ".")


def _pairs(draw: _Draw, templates: Sequence[_Template], seen: set[str]) -> Iterator[Pair]:
    """Endless minimal pairs of unseen sentences. A block with a seen one is dropped whole, or its words would not balance."""
    while True:
        for template in templates:
            block = template(draw)
            sentences = {sentence for pair in block for sentence in pair}
            if seen.isdisjoint(sentences):
                seen |= sentences
                yield from block


def generate(split: Split, size: int, seed: int) -> list[Example]:
    """Make `size` distinct sentences of one split, the same ones for the same arguments.

    Half are acceptable and half are not, every phenomenon has the same share (to within a pair), and every word form is as
    frequent in acceptable sentences as in unacceptable ones, up to the last block of each phenomenon.

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
    draw = _Draw(rng, TRAIN if split == "train" else TEST)
    seen: set[str] = set()
    rows: list[tuple[str, int, str]] = []
    pairs_needed = (size + 1) // 2
    for position, phenomenon in enumerate(PHENOMENA):
        share = (pairs_needed + position) // len(PHENOMENA)
        for good, bad in islice(_pairs(draw, _TEMPLATES[phenomenon], seen), share):
            rows += [(good, 1, phenomenon), (bad, 0, phenomenon)]
    rng.shuffle(rows)
    return [
        Example(sentence=_finish(sentence), label=label, idx=idx, phenomenon=phenomenon)
        for idx, (sentence, label, phenomenon) in enumerate(rows[:size])
    ]
