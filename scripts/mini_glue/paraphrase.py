"""MRPC, QQP and STS-B: do two sentences or questions mean the same, and if not, how nearly?"""

from __future__ import annotations

from scripts.mini_glue import edits
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.edits import Edit
from scripts.mini_glue.events import (
    Event,
    askable,
    asked_again,
    draw_event,
    retold,
    with_roles,
)
from scripts.mini_glue.lexicon import EVERYTHING

NEAR_MISSES: tuple[tuple[Edit, int], ...] = (
    (edits.swap_roles, 5),
    (edits.negate, 3),
    (edits.change_verb, 3),
    (edits.change_person, 2),
    (edits.change_thing, 1),
    (edits.change_number, 2),
    (edits.change_adjective, 2),
    (edits.change_setting, 2),
)
_DISTANCE: tuple[tuple[Edit, int], ...] = (
    (edits.drop_detail, 5),
    (edits.add_detail, 5),
    (edits.change_setting, 10),
    (edits.change_number, 10),
    (edits.change_adjective, 10),
    (edits.change_thing, 15),
    (edits.change_person, 15),
    (edits.swap_roles, 20),
    (edits.change_verb, 20),
    (edits.negate, 25),
)
"""Tenths of a point of similarity that each edit costs."""


def paraphrase(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw two statements and whether they are equivalent (about 62 % are), as MRPC does."""
    event = draw_event(draw, EVERYTHING)
    same = draw.chance(0.62)
    other = event if same else edits.apply(draw, event, EVERYTHING, NEAR_MISSES)
    return retold(draw, event, other), int(same)


def duplicate(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw two questions and whether they ask the same (about 40 % do), as QQP does."""
    event = draw_event(draw, EVERYTHING, negated=0.15)
    role = draw.pick(askable(event))
    same = draw.chance(0.4)
    other, other_role = event, role
    if not same:
        roles = [choice for choice in askable(event) if choice != role]
        if draw.chance(0.3):
            other_role = draw.pick(roles)
        else:
            other = _near_question(draw, event, role)
    return asked_again(draw, event, role, other, other_role), int(same)


def _near_question(draw: Draw, event: Event, role: str) -> Event:
    """Edit an event where a question for `role` shows it.

    A question leaves out what it asks for, so an edit of that alone would change nothing.
    """
    while True:
        other = edits.apply(draw, event, EVERYTHING, NEAR_MISSES)
        if with_roles(other, {role: getattr(event, role)}) != event:
            return other


def similarity(draw: Draw) -> tuple[tuple[str, str], float]:
    """Draw two statements and how similar they are, 0.0 to 5.0 in tenths, as STS-B does."""
    event = other = draw_event(draw, EVERYTHING)
    if draw.chance(0.12):
        unrelated = draw_event(draw, EVERYTHING)
        shared = 5 * (unrelated.patient.is_person == event.patient.is_person)
        return retold(draw, event, unrelated), shared / 10
    tenths = 50
    left = _DISTANCE
    for _ in range(draw.weighted(((0, 3), (1, 5), (2, 4), (3, 3), (4, 2)))):
        edit, cost = draw.pick(left)
        edited = edit(draw, other, EVERYTHING)
        if edited is not None and edited != other:
            other, tenths = edited, tenths - cost
        left = tuple(choice for choice in left if choice[0] is not edit)
    return retold(draw, event, other), max(tenths, 10) / 10
