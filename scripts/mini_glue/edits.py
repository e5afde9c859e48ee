"""Changes to an event, each of which changes what it means in a known way.

Every edit returns None for an event to which it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from scripts.mini_glue import lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.events import Entity, Event, draw_thing, other_person, with_roles
from scripts.mini_glue.lexicon import World

Edit = Callable[[Draw, Event, World], Event | None]


def swap_roles(_draw: Draw, event: Event, _world: World) -> Event | None:
    """Let the one who acted be the one acted upon."""
    if event.recipient:
        return replace(event, agent=event.recipient, recipient=event.agent)
    if event.patient.is_person:
        return replace(event, agent=event.patient, patient=event.agent)
    return None


def negate(_draw: Draw, event: Event, _world: World) -> Event | None:
    """Say that what happened did not, or the reverse."""
    return replace(event, negated=not event.negated)


def change_verb(_draw: Draw, event: Event, _world: World) -> Event | None:
    """Let something else be done."""
    return replace(event, verb=lexicon.RIVAL[event.verb])


def change_verb_to_contrary(draw: Draw, event: Event, world: World) -> Event | None:
    """Let something be done that excludes what was done."""
    return change_verb(draw, event, world) if event.verb in lexicon.CONTRARY else None


def change_person(draw: Draw, event: Event, world: World) -> Event | None:
    """Put somebody else in one of the roles that people have."""
    roles = [
        role
        for role in ("agent", "patient", "recipient")
        if (entity := getattr(event, role)) is not None and entity.is_person
    ]
    taken = (event.agent, event.patient, event.recipient)
    return _with(event, draw.pick(roles), other_person(draw, world, *taken))


def change_thing(draw: Draw, event: Event, world: World) -> Event | None:
    """Let it be about a thing of another kind."""
    if event.patient.is_person:
        return None
    kind = lexicon.KIND_OF.get(event.patient.noun, event.patient.noun)
    while True:
        noun = draw_thing(draw, world).noun
        if lexicon.KIND_OF[noun] != kind:
            return replace(event, patient=replace(event.patient, noun=noun))


def change_number(draw: Draw, event: Event, _world: World) -> Event | None:
    """Let there be another number of things."""
    if event.patient.number not in lexicon.NUMBERS:
        return None
    number = draw.other(lexicon.NUMBERS, event.patient.number)
    return replace(event, patient=replace(event.patient, number=number))


def change_adjective(draw: Draw, event: Event, _world: World) -> Event | None:
    """Turn an adjective into its opposite."""
    roles = _roles_with_adjective(event)
    if not roles:
        return None
    role = draw.pick(roles)
    entity: Entity = getattr(event, role)
    assert entity.adjective is not None
    return _with(event, role, replace(entity, adjective=lexicon.RIVAL[entity.adjective]))


def change_setting(draw: Draw, event: Event, world: World) -> Event | None:
    """Move the event to another time or place."""
    roles = [role for role in ("time", "place") if getattr(event, role)]
    if not roles:
        return None
    if draw.pick(roles) == "time":
        return replace(event, time=draw.other(lexicon.TIMES, event.time))
    return replace(event, place=draw.other(world.places, event.place))


def drop_detail(draw: Draw, event: Event, _world: World) -> Event | None:
    """Leave out a time, a place, an adjective or an exact number."""
    options = [
        with_roles(event, {role: None}) for role in ("time", "place") if getattr(event, role)
    ]
    for role in _roles_with_adjective(event):
        options.append(_with(event, role, replace(getattr(event, role), adjective=None)))
    if event.patient.number in lexicon.NUMBERS:
        options.append(replace(event, patient=replace(event.patient, number="some")))
    return draw.pick(options) if options else None


def add_detail(draw: Draw, event: Event, world: World) -> Event | None:
    """Say a time, a place or an adjective that was left open."""
    options = []
    if event.time is None:
        options.append(replace(event, time=draw.pick(lexicon.TIMES)))
    if event.place is None:
        options.append(replace(event, place=draw.pick(world.places)))
    for role in ("agent", "patient", "recipient"):
        entity: Entity | None = getattr(event, role)
        if entity and not entity.name and not entity.adjective:
            pairs = lexicon.PERSON_ADJECTIVES if entity.is_person else lexicon.THING_ADJECTIVES
            options.append(
                _with(event, role, replace(entity, adjective=draw.pick(draw.pick(pairs))))
            )
    return draw.pick(options) if options else None


def generalise(draw: Draw, event: Event, _world: World) -> Event | None:
    """Call somebody or something by a more general noun."""
    return _change_noun(draw, event, lexicon.KIND_OF)


def specialise(draw: Draw, event: Event, _world: World) -> Event | None:
    """Call somebody or something by a more special noun."""
    return _change_noun(
        draw, event, {kind: draw.pick(nouns) for kind, nouns in lexicon.KINDS.items()}
    )


def _change_noun(
    draw: Draw, event: Event, nouns: MappingProxyType[str, str] | dict[str, str]
) -> Event | None:
    roles = [
        role
        for role in ("agent", "patient", "recipient")
        if (entity := getattr(event, role)) is not None and entity.noun in nouns
    ]
    if not roles:
        return None
    role = draw.pick(roles)
    entity = getattr(event, role)
    return _with(event, role, replace(entity, noun=nouns[entity.noun]))


def _roles_with_adjective(event: Event) -> list[str]:
    return [
        role
        for role in ("agent", "patient", "recipient")
        if (entity := getattr(event, role)) is not None and entity.adjective
    ]


def _with(event: Event, role: str, entity: Entity) -> Event:
    return with_roles(event, {role: entity})


def apply(draw: Draw, event: Event, world: World, choices: tuple[tuple[Edit, int], ...]) -> Event:
    """Apply one of the weighted edits, drawn among those that apply.

    Raises:
        ValueError: none of `choices` applies to the event.
    """
    edited = apply_if_possible(draw, event, world, choices)
    if edited == event:
        raise ValueError("no edit applies to the event")
    return edited


def apply_if_possible(
    draw: Draw, event: Event, world: World, choices: tuple[tuple[Edit, int], ...]
) -> Event:
    """Apply one of the weighted edits, or return the event as it is where none applies."""
    left = list(choices)
    while left:
        edit = draw.weighted(left)
        edited = edit(draw, event, world)
        if edited is not None and edited != event:
            return edited
        left = [choice for choice in left if choice[0] is not edit]
    return event
