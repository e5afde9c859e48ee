"""WNLI: whom does the pronoun mean?

Unlike the real task, whose dev set is made to mislead whoever learns from train, this one can be
learned: the schemas of train and dev are the same, with other people and words.
"""

from __future__ import annotations

from dataclasses import dataclass

from scripts.mini_glue import lexicon
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.events import sentence

NOT_ENTAILMENT, ENTAILMENT = 0, 1


@dataclass(frozen=True)
class Schema:
    """A verb, and the reasons that can be given for it, by who they are true of."""

    verb: str
    subject_was: tuple[str, ...]
    object_was: tuple[str, ...]


_PEOPLE = (
    Schema("help", ("kind", "friendly"), ("in trouble", "helpless")),
    Schema("defeat", ("strong", "fast"), ("weak", "slow")),
    Schema("envy", ("unlucky", "jealous"), ("successful", "lucky")),
    Schema("teach", ("wise", "experienced"), ("ignorant", "curious")),
    Schema("punish", ("strict", "angry"), ("guilty", "naughty")),
    Schema("trust", ("trusting", "naive"), ("honest", "reliable")),
    Schema("feed", ("generous", "caring"), ("hungry", "starving")),
    Schema("comfort", ("gentle", "patient"), ("sad", "upset")),
)
_THINGS = (
    Schema("fit in", ("too big", "too wide"), ("too small", "too narrow")),
    Schema("pass", ("fast", "quick"), ("slow", "late")),
)


@dataclass(frozen=True)
class Puzzle:
    """A sentence with a pronoun, who it may mean, and who it does mean."""

    subject: str
    verb: str
    object: str
    pronoun: str
    objective: str
    reason: str
    of_subject: bool
    negated: bool

    def say(self, draw: Draw) -> str:
        """Return the sentence, in the active or the passive voice."""
        reason = f"because {self.pronoun} was {self.reason}"
        if self.verb != "fit in" and draw.chance(0.4):
            be = "was not" if self.negated else "was"
            done = lexicon.participle(self.verb)
            return sentence(self.object, be, done, "by", self.subject, reason)
        return sentence(self.subject, self._verb(), self.object, reason)

    def say_with_name(self, of_subject: bool) -> str:
        """Return the sentence with the reason in front and a name in place of the pronoun."""
        if of_subject:
            names = (self.subject, self.pronoun, self.object)
        else:
            names = (self.object, self.subject, self.objective)
        front = f"because {names[0]} was {self.reason},"
        return sentence(front, names[1], self._verb(), names[2])

    def claim(self, of_subject: bool) -> str:
        """Return the reason with a name in place of the pronoun."""
        return sentence(self.subject if of_subject else self.object, "was", self.reason)

    def _verb(self) -> str:
        return f"did not {self.verb}" if self.negated else lexicon.past(self.verb)


def draw_puzzle(draw: Draw) -> Puzzle:
    """Draw a puzzle about two people of one sex or two things."""
    if draw.chance(0.2):
        schema = draw.pick(_THINGS)
        kinds = ("vehicle", "vehicle") if schema.verb == "pass" else ("tool", "container")
        first = draw.pick(lexicon.KINDS[kinds[0]])
        pair = (f"the {first}", f"the {draw.other(lexicon.KINDS[kinds[1]], first)}")
        pronouns = ("it", "it")
    else:
        schema = draw.pick(_PEOPLE)
        names = lexicon.FEMALE if draw.chance(0.5) else lexicon.MALE
        first = draw.pick(names)
        pair = (first, draw.other(names, first))
        pronouns = ("she", "her") if names is lexicon.FEMALE else ("he", "him")
    of_subject = draw.chance(0.5)
    # What explains that one won explains, of the other, why they did not.
    reversed_ = schema.verb in {"defeat", "pass"} and draw.chance(0.4)
    reasons = schema.subject_was if of_subject != reversed_ else schema.object_was
    negated = reversed_ or schema.verb == "fit in"
    return Puzzle(pair[0], schema.verb, pair[1], *pronouns, draw.pick(reasons), of_subject, negated)


def pronoun_reference(draw: Draw) -> tuple[tuple[str, str], int]:
    """Draw a sentence, a reading of its pronoun, and whether it is the right one (about half)."""
    puzzle = draw_puzzle(draw)
    right = draw.chance(0.48)
    reading = puzzle.claim(puzzle.of_subject == right)
    return (puzzle.say(draw), reading), ENTAILMENT if right else NOT_ENTAILMENT
