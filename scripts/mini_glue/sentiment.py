"""SST-2: does this reviewer like what they saw?

Negation turns a word of praise around, and where two clauses disagree the main one decides: the
one after `but`, the one without `although`.
"""

from __future__ import annotations

from scripts.mini_glue import lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.events import sentence

NEGATIVE, POSITIVE = 0, 1
_WORDS = {
    False: ("dull", "slow", "terrible", "boring", "awful", "weak", "clumsy", "tedious", "stale"),
    True: (
        "moving", "funny", "wonderful", "charming", "great", "clever", "elegant", "gripping",
        "fresh",
    ),
}  # fmt: skip
_VERBS = {False: ("hate", "dislike", "regret"), True: ("love", "enjoy", "admire")}
_WORKS = ("film", "concert", "play", "novel", "song", "show", "opera", "story")
_PARTS = ("acting", "plot", "music", "ending", "dialogue", "opening", "cast", "humour")
_VERDICTS = {
    True: ("recommended it to everyone", "wanted to see it again", "applauded at the end"),
    False: ("warned everyone about it", "left before the end", "asked for the money back"),
}


def sentiment(draw: Draw) -> tuple[tuple[str], int]:
    """Draw a review and whether it is positive (about 54 % are)."""
    positive = draw.chance(0.54)
    text = review(draw, positive, denials=0.15, contrasts=1)
    return (text,), POSITIVE if positive else NEGATIVE


def review(draw: Draw, positive: bool, denials: float = 0.5, contrasts: int = 2) -> str:
    """Say something of a work that is good or bad on the whole.

    `denials` is the share of clauses that deny the opposite of what they mean, `contrasts` the
    weight of each form with two clauses that disagree; a form with one clause has weight two.
    """
    form = draw.weighted((("plain", 2), ("but", contrasts), ("although", contrasts), ("viewer", 2)))
    if form == "plain":
        return sentence(_clause(draw, _subject(draw), positive, denials))
    if form == "viewer":
        return sentence(_viewer(draw, positive, denials))
    part, whole = draw.pick(_PARTS), draw.pick(_WORKS)
    aside = _clause(draw, f"the {part}", not positive, denials)
    main = _clause(draw, f"the {whole}", positive, denials)
    if form == "but":
        return sentence(f"{aside},", "but", main)
    if draw.chance(0.5):
        return sentence("although", f"{aside},", main)
    return sentence(main, "although", aside)


def opinion(draw: Draw, positive: bool) -> str:
    """Say plainly what somebody thought of a work."""
    name, word = draw.pick(lexicon.NAMES), draw.pick(_WORDS[positive])
    if draw.chance(0.5):
        return sentence(name, "found it", word)
    return sentence(name, lexicon.past(draw.pick(_VERBS[positive])), "it")


def verdict(draw: Draw, positive: bool) -> str:
    """Say what a visitor did after such a work."""
    return sentence(draw.pick(lexicon.NAMES), draw.pick(_VERDICTS[positive]))


def _subject(draw: Draw) -> str:
    whole = f"the {draw.pick(_WORKS)}"
    return whole if draw.chance(0.5) else f"the {draw.pick(_PARTS)} of {whole}"


def _clause(draw: Draw, subject: str, positive: bool, denials: float) -> str:
    """Say of a subject that it is good or bad, sometimes by denying the opposite."""
    denied = draw.chance(denials)
    word = draw.pick(_WORDS[positive != denied])
    if denied:
        return f"{subject} was {draw.pick(('not', 'never', 'hardly', 'far from'))} {word}"
    return f"{subject} was {draw.pick(('', 'very ', 'really ', 'always '))}{word}"


def _viewer(draw: Draw, positive: bool, denials: float) -> str:
    """Say that somebody liked or disliked a work that has a good or a bad name."""
    denied = draw.chance(denials)
    verb = draw.pick(_VERBS[positive != denied])
    word = draw.pick(_WORDS[draw.chance(0.5)])
    verb = f"did not {verb}" if denied else lexicon.past(verb)
    return f"{draw.pick(lexicon.NAMES)} {verb} the {word} {draw.pick(_WORKS)}"
