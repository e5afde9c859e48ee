"""QNLI: does the sentence answer the question?

A sentence that does not is about the same people and things: it leaves out what is asked, or it
tells of something else.
"""

from __future__ import annotations

from dataclasses import replace

from scripts.mini_glue import edits, lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.edits import Edit
from scripts.mini_glue.events import (
    Event,
    askable,
    draw_event,
    question,
    statement,
    with_roles,
)
from scripts.mini_glue.lexicon import EVERYTHING

ENTAILMENT, NOT_ENTAILMENT = 0, 1
_OTHER_STORY: tuple[tuple[Edit, int], ...] = (
    (edits.swap_roles, 6),
    (edits.change_verb, 3),
    (edits.change_person, 2),
    (edits.change_thing, 1),
)


def answerability(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw a question, a sentence, and whether the sentence answers it (half do)."""
    event = draw_event(draw, EVERYTHING, negated=0.0)
    event = replace(
        event,
        time=draw.pick(lexicon.TIMES) if draw.chance(0.7) else None,
        place=draw.pick(EVERYTHING.places) if draw.chance(0.7) else None,
    )
    role = draw.pick(askable(event))
    asked = replace(event, time=None, place=None)
    text = question(draw, with_roles(asked, {role: getattr(event, role)}), role)
    if draw.chance(0.5):
        return (text, statement(draw, event)), ENTAILMENT
    return (text, statement(draw, _beside(draw, event, role))), NOT_ENTAILMENT


def _beside(draw: Draw, event: Event, role: str) -> Event:
    """Change an event so that it no longer answers a question for `role`."""
    if role in {"time", "place"} and draw.chance(0.6):
        return with_roles(event, {role: None})
    while True:
        other = edits.apply(draw, event, EVERYTHING, _OTHER_STORY)
        if with_roles(other, {role: getattr(event, role)}) != event:
            return other
