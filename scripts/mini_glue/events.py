"""What a sentence is about, and the many ways of saying it.

An `Event` is a meaning; `statement` and `question` realise it, with words and order drawn anew each
time, so that two realisations of one event are paraphrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scripts.mini_glue import lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.lexicon import Sense, World


@dataclass(frozen=True)
class Entity:
    """Somebody or something: a name, or a noun with what is said of it."""

    noun: str
    name: bool = False
    definite: bool = True
    adjective: Sense | None = None
    number: str | None = None
    """A number word or `some`; None for one."""

    @property
    def is_person(self) -> bool:
        """Whether it can act."""
        kind = lexicon.KIND_OF.get(self.noun, self.noun)
        return self.name or kind in lexicon.EVERYTHING.people

    def say(self, draw: Draw) -> str:
        """Return a noun phrase, with a synonym of the adjective drawn."""
        if self.name:
            return self.noun
        noun = lexicon.plural(self.noun) if self.number else self.noun
        phrase = f"{draw.pick(self.adjective)} {noun}" if self.adjective else noun
        if self.number:
            return f"{self.number} {phrase}"
        return f"the {phrase}" if self.definite else lexicon.with_article(phrase)


@dataclass(frozen=True)
class Event:
    """Who did what to whom, when and where; or that it did not happen."""

    agent: Entity
    verb: Sense
    patient: Entity
    recipient: Entity | None = None
    time: str | None = None
    place: str | None = None
    negated: bool = False


def with_roles(event: Event, changes: Mapping[str, Any]) -> Event:
    """Return the event with other values for the fields that `changes` names."""
    return replace(event, **changes)


def draw_person(draw: Draw, world: World) -> Entity:
    """Draw somebody: by name, or by what they are."""
    if draw.chance(0.5):
        return Entity(draw.pick(lexicon.NAMES), name=True)
    noun = draw.pick(lexicon.KINDS[draw.pick(world.people)])
    return Entity(noun, adjective=_adjective(draw, lexicon.PERSON_ADJECTIVES, 0.2))


def draw_thing(draw: Draw, world: World) -> Entity:
    """Draw one thing or several."""
    return Entity(
        draw.pick(lexicon.KINDS[draw.pick(world.things)]),
        definite=draw.chance(0.6),
        adjective=_adjective(draw, lexicon.THING_ADJECTIVES, 0.4),
        number=draw.pick(lexicon.NUMBERS) if draw.chance(0.25) else None,
    )


def _adjective(
    draw: Draw, pairs: tuple[tuple[Sense, Sense], ...], probability: float
) -> Sense | None:
    return draw.pick(draw.pick(pairs)) if draw.chance(probability) else None


def other_person(draw: Draw, world: World, *taken: Entity | None) -> Entity:
    """Draw somebody who is none of `taken`, nor of a kind with them."""
    nouns = {entity.noun for entity in taken if entity}
    kinds = {lexicon.KIND_OF.get(noun) for noun in nouns} - {None}
    while True:
        person = draw_person(draw, world)
        kind = lexicon.KIND_OF.get(person.noun)
        if person.noun not in nouns and kind not in kinds | nouns:
            return person


def draw_event(draw: Draw, world: World, negated: float = 0.25) -> Event:
    """Draw an event; `negated` is the probability that it did not happen."""
    frame = draw.weighted((("person", 9), ("thing", 6), ("transfer", 5)))
    agent = draw_person(draw, world)
    recipient = None
    if frame == "person":
        patient = other_person(draw, world, agent)
        verbs = lexicon.PERSON_VERBS
    else:
        patient = draw_thing(draw, world)
        verbs = lexicon.THING_VERBS if frame == "thing" else lexicon.TRANSFER_VERBS
        recipient = other_person(draw, world, agent) if frame == "transfer" else None
    return Event(
        agent=agent,
        verb=draw.pick(draw.pick(verbs)),
        patient=patient,
        recipient=recipient,
        time=draw.pick(lexicon.TIMES) if draw.chance(0.35) else None,
        place=draw.pick(world.places) if draw.chance(0.35) else None,
        negated=draw.chance(negated),
    )


def sentence(*words: str | None, end: str = ".") -> str:
    """Join the parts that are there, with a capital and a full stop."""
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + end


def statement(draw: Draw, event: Event) -> str:
    """Say an event: active, passive or cleft, adverbials in front or at the end."""
    time, place = event.time, event.place
    tail = " ".join(part for part in draw.shuffled((time, place)) if part)
    front = ""
    if tail and draw.chance(0.3):
        front, tail = tail, ""
        if time and place and draw.chance(0.5):
            front, tail = (time, place) if draw.chance(0.5) else (place, time)
    voice = draw.weighted((("active", 5), ("passive", 4), ("cleft", 1)))
    if voice == "cleft" and not event.negated and not front:
        clause = f"it was {event.agent.say(draw)} who {_active_verb(draw, event)}"
    elif voice == "passive":
        clause = _passive(draw, event)
    else:
        clause = f"{event.agent.say(draw)} {_active_verb(draw, event)}"
    return sentence(f"{front}," if front else None, clause, tail)


def retold(draw: Draw, event: Event, other: Event) -> tuple[str, str]:
    """Say two events, the second in other words than the first."""
    first = statement(draw, event)
    while True:
        second = statement(draw, other)
        if second != first:
            return first, second


def _objects(draw: Draw, event: Event) -> str:
    patient = event.patient.say(draw)
    if event.recipient is None:
        return patient
    recipient = event.recipient.say(draw)
    return f"{recipient} {patient}" if draw.chance(0.5) else f"{patient} to {recipient}"


def _active_verb(draw: Draw, event: Event) -> str:
    verb = draw.pick(event.verb)
    if not event.negated:
        phrase = lexicon.past(verb)
    elif draw.chance(0.3):
        phrase = f"never {lexicon.past(verb)}"
    else:
        phrase = f"did not {verb}"
    return f"{phrase} {_objects(draw, event)}"


def _passive(draw: Draw, event: Event) -> str:
    be = "were" if event.patient.number else "was"
    negation = ("never " if draw.chance(0.3) else "not ") if event.negated else ""
    verb = lexicon.participle(draw.pick(event.verb))
    to = f" to {event.recipient.say(draw)}" if event.recipient else ""
    return f"{event.patient.say(draw)} {be} {negation}{verb}{to} by {event.agent.say(draw)}"


def askable(event: Event) -> list[str]:
    """Return the roles of an event that a question can ask for, in a fixed order."""
    roles = ("agent", "patient", "recipient", "time", "place")
    return [role for role in roles if getattr(event, role) is not None]


_WH = {
    "time": ("when", "on what date"),
    "place": ("where", "in which place"),
    "recipient": ("to whom",),
}


def question(draw: Draw, event: Event, role: str) -> str:
    """Ask for one role of an event, in the active or the passive voice."""
    verb = draw.pick(event.verb)
    time = None if role == "time" else event.time
    place = None if role == "place" else event.place
    agent, patient = event.agent.say(draw), event.patient.say(draw)
    passive = draw.chance(0.4)
    to = f"to {event.recipient.say(draw)}" if event.recipient and role != "recipient" else None
    negation = "not" if event.negated else None
    done = lexicon.participle(verb)
    be = "were" if event.patient.number else "was"
    words: tuple[str | None, ...]
    if role == "agent":
        who = draw.pick(("who", "which person"))
        if passive:
            words = ("by whom", be, patient, negation, done, to)
        elif event.negated:
            words = (who, "did not", verb, patient, to)
        else:
            words = (who, lexicon.past(verb), patient, to)
    elif role == "patient":
        person = event.patient.is_person
        if passive:
            words = ("who" if person else "what", "was", negation, done, to, "by", agent)
        else:
            words = ("whom" if person else "what", "did", agent, negation, verb, to)
    elif passive:
        words = (draw.pick(_WH[role]), be, patient, negation, done, to, "by", agent)
    else:
        words = (draw.pick(_WH[role]), "did", agent, negation, verb, patient, to)
    return sentence(*words, time, place, end="?")


def asked_again(
    draw: Draw, event: Event, role: str, other: Event, other_role: str
) -> tuple[str, str]:
    """Ask two questions, the second in other words than the first."""
    first = question(draw, event, role)
    while True:
        second = question(draw, other, other_role)
        if second != first:
            return first, second
