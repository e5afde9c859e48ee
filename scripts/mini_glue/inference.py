"""MNLI, RTE and AX: does the second text follow from the first?

Hypotheses are read as natural-language-inference annotators are told to: of the same event as the
premise. Of what did not happen, the more special follows from the more general and not the reverse.
"""

from __future__ import annotations

from scripts.mini_glue import edits
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.edits import Edit
from scripts.mini_glue.events import Event, draw_event, retold, statement
from scripts.mini_glue.lexicon import DAILY_LIFE, EVERYTHING, World

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
NOT_ENTAILMENT = 1
_Choices = tuple[tuple[Edit, int], ...]

_WEAKER: _Choices = ((edits.drop_detail, 4), (edits.generalise, 4))
_STRONGER: _Choices = ((edits.add_detail, 3), (edits.specialise, 3))
_ELSE: _Choices = ((edits.swap_roles, 5), (edits.change_person, 3), (edits.change_thing, 1))


def inference(draw: Draw, world: World = DAILY_LIFE) -> tuple[tuple[str, str], int]:
    """Draw premise and hypothesis, and MNLI's label: each of the three one time in three."""
    event = draw_event(draw, world, negated=0.4)
    label = draw.below(3)
    hypothesis = _HYPOTHESES[label](draw, event, world)
    return retold(draw, event, hypothesis), label


def diagnosis(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw a pair like MNLI's from every genre, as the AX test set has them."""
    return inference(draw, EVERYTHING)


def _entailed(draw: Draw, event: Event, world: World) -> Event:
    if draw.chance(0.3):
        return event
    return edits.apply_if_possible(draw, event, world, _STRONGER if event.negated else _WEAKER)


def _neutral(draw: Draw, event: Event, world: World) -> Event:
    open_ = _WEAKER if event.negated else _STRONGER
    if draw.chance(0.5):
        more = edits.apply_if_possible(draw, event, world, open_)
        if more != event:
            return more
    return edits.apply(draw, event, world, _ELSE)


def _contradicted(draw: Draw, event: Event, world: World) -> Event:
    if not event.negated and draw.chance(0.3):
        other = edits.change_verb_to_contrary(draw, event, world)
        if other is not None:
            return other
    # That it did not happen excludes each special case, and that it did, that the general did not.
    choices = _STRONGER if event.negated else _WEAKER
    other = edits.apply_if_possible(draw, event, world, choices) if draw.chance(0.4) else event
    return edits.apply(draw, other, world, ((edits.negate, 1),))


_HYPOTHESES = (_entailed, _neutral, _contradicted)


def recognition(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw a text of two sentences, a hypothesis, and RTE's label: 50 % entailment.

    What does not follow is one of the two events with its roles swapped, denied, or with somebody
    or something from the other one.
    """
    first = draw_event(draw, EVERYTHING)
    second = draw_event(draw, EVERYTHING)
    event = second if draw.chance(0.5) else first
    label = ENTAILMENT if draw.chance(0.5) else NOT_ENTAILMENT
    hypothesis = _entailed(draw, event, EVERYTHING)
    if label == NOT_ENTAILMENT:
        choices = ((edits.swap_roles, 4), (edits.negate, 2), (edits.change_person, 2),
                   (edits.change_verb, 2))  # fmt: skip
        hypothesis = edits.apply(draw, hypothesis, EVERYTHING, choices)
    text = f"{statement(draw, first)} {statement(draw, second)}"
    return (text, statement(draw, hypothesis)), label
