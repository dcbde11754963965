"""Which of two answers is better: the judge sees both, in both orders, and answers with one token, A or B.

Judges prefer a place whatever stands there (arXiv 2306.05685, section 3.3). A judge that adds a constant to the
log-odds of the first place is read without it:

    preference for two = 1 / (1 + e^-d)      d = (ln(p(B)/p(A)) with one first + ln(p(A)/p(B)) with two first) / 2

because the constant has the opposite sign in the two orders. What it was is reported, so that a judge that only looks
at the place is seen.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from streams.errors import InvalidRecord
from streams.judge import LEAST_CHARS
from streams.records import Message
from streams.rubric import Reading, conversation_text, neutralise, read, shorten
from streams.settings import Settings
from streams.vllm import BadRequest, TooLong, VllmPool

LABELS = ("A", "B")
QUESTION = "Better answer (A or B): ("
"""Ends with the parenthesis for the same reason as the category's question: the next token is the bare letter."""
LEAST = 1e-4
"""Probabilities of a label are read as at least this: one that is not among the 20 tokens shown is not impossible."""


@dataclass(frozen=True)
class Preference:
    """What the judge said about two answers, `one` and `two`."""

    two: float
    """Probability, 0..1, that `two` is the better one, without the judge's liking for a place."""
    first: tuple[float, float]
    """Probability of the answer shown first: when that was `one`, when that was `two`. A judge without a liking for a
    place gives values that add up to 1."""
    label_mass: float
    """0..1, the lesser of the two requests."""


def pair_prompt(text: str, first: str, second: str, rubric: str) -> str:
    """The request that compares two answers to `text`. Texts are neutralised, so none can close its quotation."""
    return (
        f"{rubric.rstrip()}\n\n<prompt>\n{neutralise(text).strip()}\n</prompt>\n"
        f"Answer A:\n<answer>\n{neutralise(first).strip()}\n</answer>\n"
        f"Answer B:\n<answer>\n{neutralise(second).strip()}\n</answer>\n{QUESTION}"
    )


class PairJudge:
    """Compares answers with the judge of the settings."""

    def __init__(self, pool: VllmPool, settings: Settings, rubric: str) -> None:
        self._pool = pool
        self._judge = settings.judge
        self._max_chars = settings.reward.max_chars
        self._rubric = rubric

    async def prefer(self, messages: Sequence[Message], one: str, two: str) -> Preference:
        """The preference between two answers. Raises `InvalidRecord` (`pair_unreadable` when too little probability is
        on A and B, `pair_too_long`, `pair_refused`), `Transient` and `Fatal`."""
        text = conversation_text([{"role": m.role, "content": m.content} for m in messages])
        room = self._max_chars
        while True:
            shown = _shorten(text, one, two, room)
            try:
                readings = await asyncio.gather(self._ask(*shown), self._ask(shown[0], shown[2], shown[1]))
                return _preference(*readings)
            except TooLong as error:
                room //= 2
                if room < LEAST_CHARS:
                    raise InvalidRecord("pair_too_long", str(error)) from None
            except BadRequest as error:
                raise InvalidRecord("pair_refused", str(error)) from None

    async def _ask(self, text: str, first: str, second: str) -> Reading:
        prompt = pair_prompt(text, first, second, self._rubric)
        [completion] = await self._pool.completions([prompt], model=self._judge.model)
        reading = read(completion.top_logprobs, LABELS)
        if reading.label_mass < self._judge.min_label_mass:
            raise InvalidRecord("pair_unreadable", f"the judge put {reading.label_mass:.3f} on A and B")
        return reading


def _shorten(text: str, one: str, two: str, room: int) -> tuple[str, str, str]:
    """The three texts in `room` characters: what one does not need, the others may have; both answers alike."""
    text = shorten(text, max(room // 3, room - len(one) - len(two)))
    left = room - len(text)
    return text, shorten(one, max(left // 2, left - len(two))), shorten(two, max(left // 2, left - len(one)))


def _preference(one_first: Reading, two_first: Reading) -> Preference:
    a, b = one_first.probabilities.get("A", 0.0), two_first.probabilities.get("A", 0.0)
    log_odds = (_log_odds(b) - _log_odds(a)) / 2
    return Preference(
        two=1 / (1 + math.exp(-log_odds)), first=(a, b), label_mass=min(one_first.label_mass, two_first.label_mass)
    )


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, LEAST), 1 - LEAST)
    return math.log(bounded / (1 - bounded))
