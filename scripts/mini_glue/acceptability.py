"""CoLA: is this sentence one that a speaker of English would say?

Every construction comes in a good form and in a bad form made of nearly the same words. Agreement
and reflexives have a noun in between that would agree with the wrong form.
"""

from __future__ import annotations

from collections.abc import Callable

from scripts.mini_glue import lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.events import draw_thing, sentence
from scripts.mini_glue.lexicon import EVERYTHING

UNACCEPTABLE, ACCEPTABLE = 0, 1
_STATES = ("old", "small", "happy", "famous", "beautiful", "dirty", "sad", "tall")
_WHEN = ("every day", "today", "now", "in the morning", "on Monday", None)
_PRONOUNS = (("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"), ("I", "me"))
_FAMILY = (("brother", "himself"), ("sister", "herself"), ("son", "himself"),
           ("daughter", "herself"))  # fmt: skip


def acceptability(draw: Draw) -> tuple[tuple[str], int]:
    """Draw a sentence and whether it is acceptable (about two in three are)."""
    wrong = draw.chance(0.34)
    construction = draw.pick(_CONSTRUCTIONS)
    return (construction(draw, wrong),), UNACCEPTABLE if wrong else ACCEPTABLE


def well_formed(draw: Draw) -> str:
    """Draw an acceptable sentence."""
    return draw.pick(_CONSTRUCTIONS)(draw, False)


def _noun(draw: Draw, plural: bool) -> str:
    noun = draw.pick(lexicon.KINDS[draw.pick(EVERYTHING.people)])
    return f"the {lexicon.plural(noun) if plural else noun}"


def _person(draw: Draw) -> str:
    return draw.pick(lexicon.NAMES) if draw.chance(0.6) else _noun(draw, plural=False)


def _verb_agreement(draw: Draw, wrong: bool) -> str:
    plural = draw.chance(0.5)
    near = draw.pick(("near", "behind", "with"))
    subject = f"{_noun(draw, plural)} {near} {_noun(draw, draw.chance(0.5))}"
    verb = draw.pick(lexicon.INTRANSITIVE)
    if plural == wrong:
        verb = lexicon.third_person(verb)
    return sentence(subject, verb, draw.pick(_WHEN))


def _be_agreement(draw: Draw, wrong: bool) -> str:
    plural = draw.chance(0.5)
    attractor = _noun(draw, draw.chance(0.5))
    clause = f"that {draw.pick(lexicon.NAMES)} saw near {attractor}"
    singular, many = draw.pick((("is", "are"), ("was", "were")))
    be = singular if plural == wrong else many
    return sentence(_noun(draw, plural), clause, be, draw.pick(_STATES))


def _verb_form(draw: Draw, wrong: bool) -> str:
    verb = draw.pick(draw.pick(draw.pick(lexicon.PERSON_VERBS)))
    auxiliary, right, bad = draw.pick(
        (
            ("did not", verb, lexicon.past(verb)),
            ("will", verb, lexicon.third_person(verb)),
            ("has", lexicon.participle(verb), verb),
            ("was", f"{lexicon.participle(verb)} by", f"{verb} by"),
        )
    )
    return sentence(_person(draw), auxiliary, bad if wrong else right, _person(draw))


def _pronoun_case(draw: Draw, wrong: bool) -> str:
    subject, object_ = draw.pick(_PRONOUNS)
    verb = lexicon.past(draw.pick(draw.pick(draw.pick(lexicon.PERSON_VERBS))))
    if draw.chance(0.5):
        return sentence(object_ if wrong else subject, verb, _person(draw), draw.pick(_WHEN[3:]))
    return sentence(_person(draw), verb, subject if wrong else object_, draw.pick(_WHEN[3:]))


def _determiner(draw: Draw, wrong: bool) -> str:
    noun = draw.pick(lexicon.KINDS[draw.pick(EVERYTHING.things)])
    plural = draw.chance(0.5)
    words = ("these", "those", "many", "two") if plural else ("this", "that", "every", "one")
    adjective = draw.pick(draw.pick(draw.pick(lexicon.THING_ADJECTIVES)))
    verb = lexicon.past(draw.pick(draw.pick(draw.pick(lexicon.THING_VERBS))))
    noun = noun if plural == wrong else lexicon.plural(noun)
    return sentence(_person(draw), verb, draw.pick(words), adjective, noun)


def _reflexive(draw: Draw, wrong: bool) -> str:
    relative, reflexive = draw.pick(_FAMILY)
    if wrong:
        reflexive = "herself" if reflexive == "himself" else "himself"
    verb = lexicon.past(draw.pick(draw.pick(draw.pick(lexicon.PERSON_VERBS))))
    return sentence(f"the {relative} of {_person(draw)}", verb, reflexive, draw.pick(_WHEN[3:]))


def _object_order(draw: Draw, wrong: bool) -> str:
    thing = draw_thing(draw, EVERYTHING).say(draw)
    verb = lexicon.past(draw.pick(draw.pick(draw.pick(lexicon.THING_VERBS))))
    return sentence(_person(draw), *((thing, verb) if wrong else (verb, thing)))


def _question_order(draw: Draw, wrong: bool) -> str:
    verb = draw.pick(draw.pick(draw.pick(lexicon.THING_VERBS)))
    person = _person(draw)
    order = (person, "did") if wrong else ("did", person)
    if draw.chance(0.5):
        return sentence("what", *order, verb, draw.pick(_WHEN[3:]), end="?")
    thing = draw_thing(draw, EVERYTHING).say(draw)
    return sentence(draw.pick(("when", "where", "why")), *order, verb, thing, end="?")


def _transitivity(draw: Draw, wrong: bool) -> str:
    verb = lexicon.past(draw.pick(lexicon.INTRANSITIVE))
    thing = draw_thing(draw, EVERYTHING).say(draw)
    link = draw.pick(("near", "behind", "with"))
    return sentence(_person(draw), verb, None if wrong else link, thing)


_CONSTRUCTIONS: tuple[Callable[[Draw, bool], str], ...] = (
    _verb_agreement,
    _be_agreement,
    _verb_form,
    _pronoun_case,
    _determiner,
    _reflexive,
    _object_order,
    _question_order,
    _transitivity,
)
