"""The words of mini-GLUE: what they mean to one another, and how they inflect.

A *sense* is a tuple of words with one meaning; every sense has a rival, which means something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

Sense = tuple[str, ...]

FEMALE = (
    "Anna", "Clara", "Emma", "Julia", "Maria", "Nina", "Rosa", "Sara", "Lena", "Olga", "Ruth",
    "Alice",
)  # fmt: skip
MALE = (
    "Ben", "David", "Felix", "Hugo", "Leo", "Max", "Oscar", "Paul", "Simon", "Victor", "Adam",
    "Tom",
)  # fmt: skip
NAMES = FEMALE + MALE

KINDS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "official": ("mayor", "judge", "minister", "senator"),
        "worker": ("carpenter", "plumber", "electrician", "mechanic"),
        "seller": ("baker", "butcher", "florist", "grocer"),
        "musician": ("pianist", "singer", "drummer", "violinist"),
        "scientist": ("chemist", "biologist", "physicist", "astronomer"),
        "athlete": ("runner", "swimmer", "boxer", "goalkeeper"),
        "fruit": ("apple", "pear", "peach", "plum"),
        "vehicle": ("car", "truck", "van", "bicycle"),
        "tool": ("hammer", "saw", "drill", "wrench"),
        "garment": ("coat", "scarf", "jacket", "shirt"),
        "container": ("box", "bag", "basket", "suitcase"),
        "instrument": ("violin", "guitar", "flute", "trumpet"),
        "animal": ("dog", "cat", "horse", "goat"),
        "document": ("letter", "report", "contract", "map"),
    }
)
"""A general noun and the special ones that it covers."""

KIND_OF = MappingProxyType({noun: kind for kind, nouns in KINDS.items() for noun in nouns})


@dataclass(frozen=True)
class World:
    """A genre: who and what its sentences are about."""

    people: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]


DAILY_LIFE = World(
    people=("official", "worker", "seller"),
    things=("fruit", "vehicle", "tool", "garment", "container"),
    places=(
        "in the park", "at the market", "in the kitchen", "near the station", "in the garden",
        "at the harbour",
    ),
)  # fmt: skip
STAGE_AND_SCIENCE = World(
    people=("musician", "scientist", "athlete"),
    things=("instrument", "animal", "document"),
    places=(
        "in the laboratory", "at the stadium", "in the theatre", "at the museum",
        "in the library", "near the university",
    ),
)  # fmt: skip
EVERYTHING = World(
    people=DAILY_LIFE.people + STAGE_AND_SCIENCE.people,
    things=DAILY_LIFE.things + STAGE_AND_SCIENCE.things,
    places=DAILY_LIFE.places + STAGE_AND_SCIENCE.places,
)

TIMES = (
    "yesterday", "on Monday", "on Tuesday", "on Friday", "in the morning", "in the evening",
    "last week", "last year",
)  # fmt: skip
NUMBERS = ("two", "three", "four", "five", "six", "ten")

PERSON_VERBS: tuple[tuple[Sense, Sense], ...] = (
    (("help", "assist"), ("hinder", "obstruct")),
    (("praise", "commend"), ("criticise", "blame")),
    (("trust", "believe"), ("distrust", "doubt")),
    (("like", "admire"), ("dislike", "despise")),
    (("hire", "employ"), ("dismiss", "fire")),
    (("follow", "chase"), ("lead", "guide")),
    (("welcome", "greet"), ("ignore", "snub")),
    (("remember", "recall"), ("forget",)),
    (("obey", "heed"), ("defy", "disobey")),
)
THING_VERBS: tuple[tuple[Sense, Sense], ...] = (
    (("buy", "purchase"), ("sell",)),
    (("find", "discover"), ("lose", "misplace")),
    (("repair", "fix"), ("break", "damage")),
    (("accept",), ("refuse", "reject")),
    (("keep", "retain"), ("discard", "abandon")),
    (("hide", "conceal"), ("reveal", "display")),
    (("lift", "raise"), ("lower", "drop")),
    (("push", "shove"), ("pull", "drag")),
    (("clean", "wash"), ("stain", "soil")),
)
TRANSFER_VERBS: tuple[tuple[Sense, Sense], ...] = (
    (("give", "hand"), ("promise",)),
    (("send", "mail"), ("show",)),
    (("lend", "loan"), ("offer",)),
)
CONTRARY = frozenset(
    sense
    for pair in PERSON_VERBS + THING_VERBS
    if pair[0][0] in {"trust", "like", "welcome", "remember", "obey", "accept", "keep", "hide"}
    for sense in pair
)
"""Verb senses that one person cannot do together with their rival."""

PERSON_ADJECTIVES: tuple[tuple[Sense, Sense], ...] = (
    (("tall",), ("short",)),
    (("rich", "wealthy"), ("poor", "needy")),
    (("famous", "renowned"), ("unknown", "obscure")),
    (("happy", "glad"), ("sad", "unhappy")),
    (("young", "youthful"), ("elderly", "aged")),
)
THING_ADJECTIVES: tuple[tuple[Sense, Sense], ...] = (
    (("big", "large"), ("small", "little")),
    (("old", "ancient"), ("new", "modern")),
    (("cheap", "inexpensive"), ("expensive", "costly")),
    (("clean", "spotless"), ("dirty", "filthy")),
    (("beautiful", "lovely"), ("ugly", "hideous")),
    (("red",), ("blue",)),
    (("green",), ("black",)),
)

RIVAL: MappingProxyType[Sense, Sense] = MappingProxyType(
    {
        first: second
        for pair in (
            PERSON_VERBS + THING_VERBS + TRANSFER_VERBS + PERSON_ADJECTIVES + THING_ADJECTIVES
        )
        for first, second in (pair, pair[::-1])
    }
)

_PAST = {
    "lead": "led", "forget": "forgot", "buy": "bought", "sell": "sold", "find": "found",
    "lose": "lost", "break": "broke", "keep": "kept", "hide": "hid", "give": "gave",
    "send": "sent", "lend": "lent", "show": "showed", "drop": "dropped", "drag": "dragged",
    "snub": "snubbed", "regret": "regretted", "sleep": "slept", "sing": "sang",
    "hurt": "hurt", "see": "saw",
    "run": "ran", "swim": "swam", "speak": "spoke", "teach": "taught", "feed": "fed",
}  # fmt: skip
_PARTICIPLE = {
    "forget": "forgotten", "break": "broken", "hide": "hidden", "give": "given", "show": "shown",
    "sing": "sung", "see": "seen", "run": "run", "swim": "swum", "speak": "spoken",
}  # fmt: skip


def past(verb: str) -> str:
    """Return the past tense of a verb given in its base form."""
    if verb in _PAST:
        return _PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeo":
        return verb[:-1] + "ied"
    return verb + "ed"


def participle(verb: str) -> str:
    """Return the past participle of a verb given in its base form."""
    return _PARTICIPLE.get(verb) or past(verb)


def third_person(verb: str) -> str:
    """Return the third person singular of the present tense."""
    if verb.endswith(("s", "sh", "ch", "x")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeo":
        return verb[:-1] + "ies"
    return verb + "s"


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun.endswith("f"):
        return noun[:-1] + "ves"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def with_article(phrase: str) -> str:
    """Put `a` or `an` before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _other_forms() -> dict[str, tuple[str, ...]]:
    """Map every word form to the other forms of the same word."""
    families: list[tuple[str, ...]] = [
        ("is", "are"), ("was", "were"), ("this", "these"), ("that", "those"),
        ("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"), ("I", "me"),
        ("himself", "herself"),
    ]  # fmt: skip
    families += [(noun, plural(noun)) for noun in (*KIND_OF, *KINDS)]
    verbs = {verb for sense in RIVAL for verb in sense if sense in _VERB_SENSES}
    families += [
        tuple(dict.fromkeys((verb, third_person(verb), past(verb), participle(verb))))
        for verb in sorted(verbs | set(INTRANSITIVE))
    ]
    return {
        form: tuple(other for other in family if other != form)
        for family in families
        for form in family
    }


INTRANSITIVE = ("sleep", "sing", "run", "swim", "smile", "wait", "laugh", "work")
_VERB_SENSES = frozenset(
    sense for pair in PERSON_VERBS + THING_VERBS + TRANSFER_VERBS for sense in pair
)
CAPITALISED = frozenset((*NAMES, "I"))
"""Words with a capital wherever they stand."""

OTHER_FORMS = MappingProxyType(_other_forms())
"""The other inflected forms of a word."""


def _meanings() -> dict[str, str]:
    """Map every form of a word that has synonyms or inflections to one word for its meaning."""
    meanings: dict[str, str] = {}
    for noun in (*KIND_OF, *KINDS):
        meanings[noun] = meanings[plural(noun)] = noun
    for sense in RIVAL:
        for word in sense:
            forms = (word, past(word), participle(word)) if sense in _VERB_SENSES else (word,)
            meanings.update(dict.fromkeys(forms, sense[0]))
    return meanings


MEANING = MappingProxyType(_meanings())
"""One word for all forms of all words of one meaning."""
