"""Text to pretrain on: passages of the same grammar, with no task's labels.

A passage's second sentence says the same as the first, or goes on from it, unless it was perturbed;
what is recorded is how it was perturbed, which is known because the corpus did it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.mini_glue import edits, lexicon
from scripts.mini_glue.acceptability import well_formed
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.edits import Edit
from scripts.mini_glue.events import (
    Event,
    askable,
    asked_again,
    draw_event,
    question,
    retold,
    statement,
    with_roles,
)
from scripts.mini_glue.lexicon import EVERYTHING
from scripts.mini_glue.reference import draw_puzzle
from scripts.mini_glue.sentiment import opinion, review, verdict

_EDITS: tuple[tuple[Edit, int], ...] = (
    (edits.swap_roles, 10),
    (edits.negate, 4),
    (edits.change_verb, 4),
    (edits.change_person, 3),
    (edits.change_thing, 2),
    (edits.change_number, 2),
    (edits.change_adjective, 2),
    (edits.change_setting, 2),
    (edits.drop_detail, 3),
    (edits.add_detail, 3),
    (edits.generalise, 3),
    (edits.specialise, 2),
)
UNRELATED = "unrelated"
OTHER_ROLE = "other_role"
DISTURBED = "disturbed"
PERTURBATIONS = (*(edit.__name__ for edit, _ in _EDITS), UNRELATED, OTHER_ROLE, DISTURBED)
"""Every way in which a passage can have been perturbed."""


@dataclass(frozen=True)
class Passage:
    """One sentence, or two of which the second may have been perturbed."""

    texts: tuple[str, ...]
    perturbations: tuple[str, ...] = ()
    """Names from `PERTURBATIONS`; none where the second sentence belongs to the first."""


def passages(name: str) -> Iterator[Passage]:
    """Yield passages without end; the stream depends on its name alone."""
    draw = Draw(f"pretraining/1/{name}")
    while True:
        yield draw.weighted(_PASSAGES)(draw)


def _perturbed(draw: Draw, event: Event) -> tuple[Event, tuple[str, ...]]:
    names: list[str] = []
    for _ in range(draw.weighted(((0, 8), (1, 10), (2, 3)))):
        choices = tuple(choice for choice in _EDITS if choice[0].__name__ not in names)
        edit = draw.weighted(choices)
        edited = edit(draw, event, EVERYTHING)
        if edited is not None and edited != event:
            event = edited
            names.append(edit.__name__)
    return event, tuple(names)


def _retold(draw: Draw) -> Passage:
    """A statement and a statement of the same event, an edited one, or an unrelated one."""
    event = draw_event(draw, EVERYTHING, negated=0.35)
    if draw.chance(0.04):
        return Passage(retold(draw, event, draw_event(draw, EVERYTHING)), (UNRELATED,))
    other, names = _perturbed(draw, event)
    return Passage(retold(draw, event, other), names)


def _recalled(draw: Draw) -> Passage:
    """Two statements and one that repeats either of them."""
    events = (draw_event(draw, EVERYTHING), draw_event(draw, EVERYTHING))
    other, names = _perturbed(draw, draw.pick(events))
    text = " ".join(statement(draw, event) for event in events)
    return Passage((text, statement(draw, other)), names)


def _asked_again(draw: Draw) -> Passage:
    """A question and the same one, or one about an edited event or for another role."""
    event = draw_event(draw, EVERYTHING, negated=0.15)
    role = draw.pick(askable(event))
    if draw.chance(0.15):
        other_role = draw.other(askable(event), role)
        return Passage(asked_again(draw, event, role, event, other_role), _ROLE)
    other, names = _perturbed_beside(draw, event, role)
    return Passage(asked_again(draw, event, role, other, role), names)


def _answered(draw: Draw) -> Passage:
    """A question and the statement that it asks for, or an edited one."""
    event = draw_event(draw, EVERYTHING, negated=0.1)
    settings = {"time": draw.pick(lexicon.TIMES), "place": draw.pick(EVERYTHING.places)}
    event = with_roles(event, settings)
    role = draw.pick(askable(event))
    asked = with_roles(event, {part: None for part in settings if part != role})
    text = question(draw, asked, role)
    if role in settings and draw.chance(0.3):
        return Passage((text, statement(draw, with_roles(event, {role: None}))), _ROLE)
    told = with_roles(event, {part: None for part in settings if part != role and draw.chance(0.4)})
    other, names = _perturbed_beside(draw, told, role)
    return Passage((text, statement(draw, other)), names)


_ROLE = (OTHER_ROLE,)


def _perturbed_beside(draw: Draw, event: Event, role: str) -> tuple[Event, tuple[str, ...]]:
    """Perturb an event elsewhere than in the role that a question leaves open."""
    other, names = _perturbed(draw, event)
    if edits.swap_roles.__name__ not in names:
        other = with_roles(other, {role: getattr(event, role)})
    return other, names if other != event else ()


def _visited(draw: Draw) -> Passage:
    """A review and what a visitor did or thought after it, or after another work."""
    positive, same = draw.chance(0.5), draw.chance(0.5)
    after = verdict if draw.chance(0.3) else opinion
    texts = (review(draw, positive), after(draw, positive == same))
    return Passage(texts, () if same else (UNRELATED,))


def _explained(draw: Draw) -> Passage:
    """A sentence with a pronoun, and the same with its reason in front, of one or the other."""
    puzzle, same = draw_puzzle(draw), draw.chance(0.5)
    texts = (puzzle.say(draw), puzzle.say_with_name(puzzle.of_subject == same))
    return Passage(texts, () if same else (edits.swap_roles.__name__,))


def _single(draw: Draw) -> Passage:
    """One sentence, with a word moved or in another form half the time."""
    text = well_formed(draw)
    disturbed = disturb(draw, text) if draw.chance(0.5) else text
    return Passage((disturbed,), (DISTURBED,) if disturbed != text else ())


def disturb(draw: Draw, text: str) -> str:
    """Exchange two neighbouring words of a sentence, or put one of its words in another form."""
    words = text[:-1].split(" ")
    words[0] = words[0] if words[0] in lexicon.CAPITALISED else words[0].lower()
    forms = [spot for spot, word in enumerate(words) if word in lexicon.OTHER_FORMS]
    if forms and draw.chance(0.7):
        spot = draw.pick(forms)
        words[spot] = draw.pick(lexicon.OTHER_FORMS[words[spot]])
    else:
        spot = draw.below(len(words) - 1)
        words[spot], words[spot + 1] = words[spot + 1], words[spot]
    disturbed = " ".join(words)
    return disturbed[0].upper() + disturbed[1:] + text[-1]


_PASSAGES: tuple[tuple[Callable[[Draw], Passage], int], ...] = (
    (_retold, 40),
    (_recalled, 12),
    (_asked_again, 12),
    (_answered, 13),
    (_visited, 14),
    (_explained, 6),
    (_single, 9),
)
