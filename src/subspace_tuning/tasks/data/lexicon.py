"""The words of the acceptability data: two small vocabularies, one per split, that share function words only.

Words stand in semantic classes, so that a template can ask for "someone who can sneeze" or "something one can carry"
and never makes an odd sentence by accident. What a word has to satisfy to join a class is said at the field of
`Lexicon`; the judgements of `acceptability` hold only while the classes keep those promises.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar


class Noun(NamedTuple):
    """A count noun (or a noun phrase without its determiner)."""

    singular: str
    plural: str


class Verb(NamedTuple):
    """A verb in its four forms: `carry, carries, carried, carried`."""

    base: str
    third: str
    past: str
    participle: str


class Gendered(NamedTuple):
    """Two nouns for people that differ in gender only."""

    male: Noun
    female: Noun


_T = TypeVar("_T")


def _rows(table: str) -> list[list[str]]:
    return [entry.split() for entry in table.split(",")]


def _nouns(table: str) -> tuple[Noun, ...]:
    return tuple(Noun(*row) for row in _rows(table))


def _verbs(table: str) -> tuple[Verb, ...]:
    return tuple(Verb(*row) for row in _rows(table))


def _gendered(table: str) -> tuple[Gendered, ...]:
    return tuple(Gendered(Noun(*row[:2]), Noun(*row[2:])) for row in _rows(table))


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    return tuple((first, second) for first, second in _rows(table))


def _words(table: str) -> tuple[str, ...]:
    return tuple(table.split())


@dataclass(frozen=True)
class Lexicon:
    """The content words of one split. Adjectives begin with a consonant, so that "a" never has to become "an"."""

    people: tuple[Noun, ...]
    """Professions, said of men and women alike."""
    relatives: tuple[Gendered, ...]
    """Nouns that suit an owner ("Maria's uncle") and whose gender nobody doubts."""
    men: tuple[str, ...]
    women: tuple[str, ...]
    things: tuple[Noun, ...]
    """What one can carry, damage and lose, and what may be made of wood, metal or plastic."""
    topics: tuple[str, ...]
    """What one can hand over as paper, explain, and be informed of."""
    person_adjectives: tuple[str, ...]
    thing_adjectives: tuple[str, ...]
    """Size, weight or opinion: these stand before `kind_adjectives`."""
    kind_adjectives: tuple[str, ...]
    """Material or origin: nothing comes between these and the noun."""
    manners: tuple[str, ...]
    """Manner adverbs that suit every verb in `handle`."""
    frequencies: tuple[str, ...]
    """Adverbs that stand before a verb in the present."""
    times: tuple[str, ...]
    """Adverbs that may end any sentence in the past."""
    rest: tuple[Verb, ...]
    """Someone does it; never takes an object."""
    happen: tuple[Verb, ...]
    """A thing does it by itself; nobody can do it to a thing."""
    handle: tuple[Verb, ...]
    """Someone does it to a thing; the object is never left out, and the thing never does it by itself."""
    judge: tuple[Verb, ...]
    """Someone does it to a person, possibly to oneself; the object is never left out, and no preposition follows."""
    address: tuple[tuple[str, str], ...]
    """Past tense and the preposition without which the verb takes no person."""
    give: tuple[str, ...]
    """Past tense: gave the nurse the plan; needs both objects, so not *gave the nurse of the plan."""
    explain: tuple[str, ...]
    """Past tense: explained the plan to the nurse, but not *explained the nurse the plan."""
    inform: tuple[str, ...]
    """Past tense: informed the nurse of the plan, but not *informed the plan to the nurse."""
    phrasal: tuple[tuple[str, str], ...]
    """Past tense and particle: picked it up, but not *picked up it."""
    say: tuple[str, ...]
    """Past tense, takes a that-clause."""
    know: tuple[str, ...]
    """Past tense, takes an embedded question that is a fact, so that it cannot be read as quoted."""

    def content_words(self) -> frozenset[str]:
        """Return every form of every content word, in lower case."""
        leaves = _leaves(getattr(self, field.name) for field in fields(self))
        return frozenset(word.lower() for word in leaves) - FUNCTION_WORDS


def _leaves(tree: Iterable[object]) -> Iterable[str]:
    for node in tree:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Iterable):
            yield from _leaves(node)


FUNCTION_WORDS: frozenset[str] = frozenset(
    _words(
        "the a this these that those every each both all several one two three such"
        " is are was were has had do does did will would could must not"
        " himself herself themselves it them where when why how and"
        " near behind beside to of at for on up down away out over back"
    )
)

TRAIN = Lexicon(
    people=_nouns(
        "nurse nurses, pilot pilots, lawyer lawyers, farmer farmers, baker bakers, singer singers, student students,"
        "driver drivers, soldier soldiers, sailor sailors, tailor tailors, dentist dentists"
    ),
    relatives=_gendered(
        "uncle uncles aunt aunts, nephew nephews niece nieces, boyfriend boyfriends girlfriend girlfriends,"
        "groom grooms bride brides, widower widowers widow widows"
    ),
    men=_words("John Peter Robert Daniel Paul George"),
    women=_words("Maria Anna Susan Laura Helen Nancy"),
    things=_nouns(
        "box boxes, vase vases, lamp lamps, ring rings, basket baskets, bottle bottles, knife knives, comb combs,"
        "coin coins, wheel wheels"
    ),
    topics=_words("plan report schedule contract"),
    person_adjectives=_words("tired clever young happy lazy"),
    thing_adjectives=_words("big heavy pretty strange"),
    kind_adjectives=_words("wooden plastic French Chinese"),
    manners=_words("quickly carefully quietly"),
    frequencies=_words("often rarely"),
    times=_words("yesterday again"),
    rest=_verbs(
        "sleep sleeps slept slept, sneeze sneezes sneezed sneezed, smile smiles smiled smiled,"
        "sigh sighs sighed sighed, kneel kneels knelt knelt"
    ),
    happen=_verbs("vanish vanishes vanished vanished, arrive arrives arrived arrived"),
    handle=_verbs(
        "receive receives received received, carry carries carried carried, destroy destroys destroyed destroyed,"
        "fetch fetches fetched fetched, repair repairs repaired repaired, bring brings brought brought,"
        "bury buries buried buried"
    ),
    judge=_verbs(
        "admire admires admired admired, blame blames blamed blamed, annoy annoys annoyed annoyed,"
        "flatter flatters flattered flattered, amuse amuses amused amused, distrust distrusts distrusted distrusted"
    ),
    address=_pairs("listened to, laughed at, waited for, relied on, spoke to"),
    give=_words("handed lent"),
    explain=_words("explained announced described"),
    inform=_words("informed warned"),
    phrasal=_pairs("picked up, threw away, handed over, brought back"),
    say=_words("said thought"),
    know=_words("knew forgot"),
)

TEST = Lexicon(
    people=_nouns(
        "doctor doctors, teacher teachers, artist artists, writer writers, painter painters, dancer dancers,"
        "judge judges, plumber plumbers, engineer engineers, hunter hunters, butcher butchers, banker bankers"
    ),
    relatives=_gendered(
        "father fathers mother mothers, brother brothers sister sisters, son sons daughter daughters,"
        "grandfather grandfathers grandmother grandmothers, husband husbands wife wives"
    ),
    men=_words("David Thomas Michael James Andrew Richard"),
    women=_words("Sarah Emma Alice Julia Linda Karen"),
    things=_nouns(
        "cup cups, plate plates, mirror mirrors, bell bells, clock clocks, bucket buckets, spoon spoons,"
        "ladder ladders, tray trays, drum drums"
    ),
    topics=_words("agenda proposal document petition"),
    person_adjectives=_words("hungry proud brave rich nervous"),
    thing_adjectives=_words("small nice cheap lovely"),
    kind_adjectives=_words("metal golden Italian German"),
    manners=_words("slowly secretly calmly"),
    frequencies=_words("always never"),
    times=_words("today recently"),
    rest=_verbs(
        "cough coughs coughed coughed, faint faints fainted fainted, yawn yawns yawned yawned,"
        "snore snores snored snored, shiver shivers shivered shivered"
    ),
    happen=_verbs("disappear disappears disappeared disappeared, appear appears appeared appeared"),
    handle=_verbs(
        "remove removes removed removed, damage damages damaged damaged, fix fixes fixed fixed,"
        "take takes took taken, grab grabs grabbed grabbed, replace replaces replaced replaced,"
        "obtain obtains obtained obtained"
    ),
    judge=_verbs(
        "praise praises praised praised, criticize criticizes criticized criticized, injure injures injured injured,"
        "punish punishes punished punished, support supports supported supported, insult insults insulted insulted"
    ),
    address=_pairs("talked to, looked at, cared for, depended on, stared at"),
    give=_words("gave offered"),
    explain=_words("revealed mentioned disclosed"),
    inform=_words("advised reminded"),
    phrasal=_pairs("put down, pulled out, wrapped up, took away"),
    say=_words("claimed believed"),
    know=_words("remembered discovered"),
)


@dataclass(frozen=True)
class Draw:
    """Draws words and phrases from one split's lexicon."""

    rng: random.Random
    words: Lexicon

    def one(self, options: Sequence[_T]) -> _T:
        return self.rng.choice(options)

    def people(self, count: int) -> list[Noun]:
        """Return distinct people, a third of them with an adjective, so that distances between words vary."""
        nouns = self.rng.sample(self.words.people, count)
        adjectives = self.rng.sample(self.words.person_adjectives, count)
        return [
            Noun(f"{adjective} {noun.singular}", f"{adjective} {noun.plural}") if self.rng.random() < 1 / 3 else noun
            for noun, adjective in zip(nouns, adjectives, strict=True)
        ]

    def persons(self, count: int) -> list[str]:
        """Return distinct people in the singular."""
        return [noun.singular for noun in self.people(count)]

    def thing(self) -> str:
        """Return a thing or some, to follow "the"."""
        return self.one(self.one(self.words.things))

    def quality(self, *phrases: str) -> str:
        """Return a person's adjective that none of the phrases has already: "the lazy nurse is lazy" would be odd."""
        return self.one([word for word in self.words.person_adjectives if word not in " ".join(phrases).split()])

    def near(self) -> str:
        return self.one(("near", "behind", "beside"))
