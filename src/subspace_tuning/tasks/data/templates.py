"""The templates of the acceptability data: each makes a block of minimal pairs from drawn words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .lexicon import Draw

Pair: TypeAlias = tuple[str, str]
"""A minimal pair, acceptable first, as yet without capital and full stop."""
Block: TypeAlias = list[Pair]
Template: TypeAlias = Callable[[Draw], Block]
TEMPLATES: dict[str, list[Template]] = {}


def _template(phenomenon: str) -> Callable[[Template], Template]:
    def register(template: Template) -> Template:
        TEMPLATES.setdefault(phenomenon, []).append(template)
        return template

    return register


def _cross(rows: Sequence[str], columns: Sequence[str], frame: Callable[[str, str], str]) -> Block:
    """Row i goes with column i, and is wrong with column i + 1: so every column is wrong once, too."""
    wrong = [*columns[1:], columns[0]]
    return [(frame(row, fits), frame(row, other)) for row, fits, other in zip(rows, columns, wrong, strict=True)]


# Subject and verb, next to each other or with another noun, of either number, nearer to the verb than the subject is.


@_template("agreement")
def _agreement_of_full_verbs(d: Draw) -> Block:
    (subject,), verb, often = d.people(1), d.one(d.words.rest), d.one(d.words.frequencies)
    return _cross(subject, (verb.third, verb.base), lambda noun, form: f"the {noun} {often} {form}")


@_template("agreement")
def _agreement_across_a_place(d: Draw) -> Block:
    if d.one((True, False)):
        subject, other = d.people(2)
        adjective = d.quality(*subject, *other)
    else:
        subject, other = d.rng.sample(d.words.things, 2)
        adjective = d.one(d.words.thing_adjectives)
    middle, forms = f"{d.near()} the {d.one(other)}", d.one((("is", "are"), ("was", "were")))
    return _cross(subject, forms, lambda noun, form: f"the {noun} {middle} {form} {adjective}")


@_template("agreement")
def _agreement_in_questions(d: Draw) -> Block:
    (subject,), verb = d.people(1), d.one(d.words.rest)
    adjective = d.quality(*subject)
    if d.one((True, False)):
        return _cross(subject, ("is", "are"), lambda noun, form: f"{form} the {noun} {adjective}?")
    return _cross(subject, ("does", "do"), lambda noun, form: f"{form} the {noun} {verb.base}?")


@_template("agreement")
def _agreement_of_coordinated_subjects(d: Draw) -> Block:
    first, second = d.persons(2)
    adjective = d.quality(first, second)
    return _cross(
        ("and", d.near()), ("are", "is"), lambda link, form: f"the {first} {link} the {second} {form} {adjective}"
    )


# Reflexives agree with the subject of their own clause.


@_template("reflexives")
def _reflexive_gender_of_names(d: Draw) -> Block:
    names, verb, time = (d.one(d.words.men), d.one(d.words.women)), d.one(d.words.judge), d.one(d.words.times)
    return _cross(names, ("himself", "herself"), lambda name, self: f"{name} {verb.past} {self} {time}")


@_template("reflexives")
def _reflexive_number(d: Draw) -> Block:
    relative, verb, time = d.one(d.words.relatives), d.one(d.words.judge), d.one(d.words.times)
    noun, singular = d.one(((relative.male, "himself"), (relative.female, "herself")))
    return _cross(noun, (singular, "themselves"), lambda form, self: f"the {form} {verb.past} {self} {time}")


@_template("reflexives")
def _reflexive_of_the_head_not_the_owner(d: Draw) -> Block:
    (man, woman), verb = d.one(d.words.relatives), d.one(d.words.judge)
    owners = d.one(d.words.women), d.one(d.words.men)
    if d.one((True, False)):
        rows = f"{owners[0]}'s {man.singular}", f"{owners[1]}'s {woman.singular}"
    else:
        rows = f"the {man.singular} of {owners[0]}", f"the {woman.singular} of {owners[1]}"
    return _cross(rows, ("himself", "herself"), lambda subject, self: f"{subject} {verb.past} {self}")


@_template("reflexives")
def _reflexive_of_the_inner_subject(d: Draw) -> Block:
    man, woman, verb, say = d.one(d.words.men), d.one(d.words.women), d.one(d.words.judge), d.one(d.words.say)
    rows = f"{woman} {say} that {man}", f"{man} {say} that {woman}"
    return _cross(rows, ("himself", "herself"), lambda start, self: f"{start} {verb.past} {self}")


@_template("reflexives")
def _reflexive_is_no_subject(d: Draw) -> Block:
    name, self = d.one(((d.one(d.words.men), "himself"), (d.one(d.words.women), "herself")))
    verb, time = d.one(d.words.judge), d.one(d.words.times)
    return [(f"{name} {verb.past} {self} {time}", f"{self} {verb.past} {name} {time}")]


# What a verb takes: an object or none, which one first, and with which preposition.


@_template("arguments")
def _argument_object_or_none(d: Draw) -> Block:
    (subject,), thing, time = d.persons(1), d.thing(), d.one(d.words.times)
    verbs = d.one(d.words.handle).past, d.one(d.words.rest).past
    return _cross((f" the {thing}", ""), verbs, lambda rest, verb: f"the {subject} {verb}{rest} {time}")


@_template("arguments")
def _argument_causative(d: Draw) -> Block:
    (subject,), thing, time = d.persons(1), d.thing(), d.one(d.words.times)
    verbs = d.one(d.words.handle).past, d.one(d.words.happen).past
    frames = f"the {subject} _ the {thing} {time}", f"the {thing} _ {time}"
    return _cross(frames, verbs, lambda frame, verb: frame.replace("_", verb))


@_template("arguments")
def _argument_dative(d: Draw) -> Block:
    (subject, other), topic = d.persons(2), d.one(d.words.topics)
    verbs = d.one(d.words.give), d.one(d.words.explain), d.one(d.words.inform)
    objects = f"the {other} the {topic}", f"the {topic} to the {other}", f"the {other} of the {topic}"
    return _cross(objects, verbs, lambda both, verb: f"the {subject} {verb} {both}")


@_template("arguments")
def _argument_preposition(d: Draw) -> Block:
    (subject, other), (verb, preposition) = d.people(2), d.one(d.words.address)
    tail = f"the {d.one(other)} {d.one(d.words.times)}"
    verbs, noun = (d.one(d.words.judge).past, verb), d.one(subject)
    return _cross((tail, f"{preposition} {tail}"), verbs, lambda rest, form: f"the {noun} {form} {rest}")


# Order. These pairs have the same words on both sides.


@_template("word_order")
def _order_of_question_and_clause(d: Draw) -> Block:
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
def _order_of_adverbs(d: Draw) -> Block:
    # No adjective may follow: "the secretly proud teacher" would be fine.
    subject, manner = d.one(d.words.people).singular, d.one(d.words.manners)
    verb, thing = d.one(d.words.handle), d.thing()
    good = d.one((f"the {subject} {manner} {verb.past} the {thing}", f"the {subject} {verb.past} the {thing} {manner}"))
    bad = d.one((f"the {subject} {verb.past} {manner} the {thing}", f"the {manner} {subject} {verb.past} the {thing}"))
    return [(good, bad)]


@_template("word_order")
def _order_of_adjectives(d: Draw) -> Block:
    (subject,), verb, thing = d.persons(1), d.one(d.words.handle), d.thing()
    first, second = d.one(d.words.thing_adjectives), d.one(d.words.kind_adjectives)
    start = f"the {subject} {verb.past} the"
    return [(f"{start} {first} {second} {thing}", f"{start} {second} {first} {thing}")]


@_template("word_order")
def _order_of_determiners(d: Draw) -> Block:
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


@_template("word_order")
def _order_of_negation(d: Draw) -> Block:
    (subject,), verb, thing = d.persons(1), d.one(d.words.handle), d.thing()
    auxiliary, form = d.one((("did", verb.base), ("will", verb.base), ("must", verb.base), ("has", verb.participle)))
    return [(f"the {subject} {auxiliary} not {form} the {thing}", f"the {subject} not {auxiliary} {form} the {thing}")]


@_template("word_order")
def _order_of_particles(d: Draw) -> Block:
    (subject,), (verb, particle) = d.persons(1), d.one(d.words.phrasal)
    pronoun, time = d.one(("it", "them")), d.one(d.words.times)
    return [(f"the {subject} {verb} {pronoun} {particle} {time}", f"the {subject} {verb} {particle} {pronoun} {time}")]


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
def _determiner_of_an_object(d: Draw) -> Block:
    (subject,), verb, noun = d.persons(1), d.one(d.words.handle), d.one(d.words.things)
    middle = d.one(("", f"{d.one(d.words.thing_adjectives)} "))
    return _cross(noun, d.one(_BY_NUMBER), lambda form, which: f"the {subject} {verb.past} {which} {middle}{form}")


@_template("determiners")
def _determiner_of_a_subject(d: Draw) -> Block:
    (noun,), verb, time = d.people(1), d.one(d.words.rest), d.one(d.words.times)
    return _cross(noun, d.one(_BY_NUMBER), lambda form, which: f"{which} {form} {verb.past} {time}")
