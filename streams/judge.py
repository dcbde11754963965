"""The judge: three answers about one prompt for one prefill, through vLLM."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.errors import InvalidRecord, SettingsError
from streams.metrics import Metrics
from streams.records import Message
from streams.rubric import (
    ASKED_OF_PROMPTS,
    RUBRIC,
    Question,
    Reading,
    category_of,
    conversation_text,
    judge_id,
    judge_prompts,
    labels_of,
    read,
    shorten,
)
from streams.settings import JudgeSettings
from streams.vllm import BadRequest, TooLong, VllmPool

LEAST_CHARS = 100
"""A text that does not fit the context at this length never will: the model's context is too small for the rubric."""


@dataclass(frozen=True)
class Rating:
    """What the judge said about one prompt."""

    difficulty: float
    """1..9."""
    quality: float
    """1..9."""
    category: str
    label_mass: float
    """0..1, the least of the three answers."""
    seen_chars: int
    """How much of the prompt the judge saw, in characters."""
    distribution: dict[str, list[float]] = field(default_factory=dict)
    """Question → probability of each label among the labels, in their order, four decimals."""


class Judge:
    """Rates prompts with the model of the settings. `identity` goes with every score."""

    def __init__(self, pool: VllmPool, settings: JudgeSettings, metrics: Metrics | None = None) -> None:
        self._pool = pool
        self._settings = settings
        self._metrics = metrics
        self.rubric = _rubric(settings)
        self.identity = identity_of(settings)

    async def rate(self, messages: Sequence[Message]) -> Rating:
        """The rating of a conversation.

        A text over `max_chars`, or one that vLLM calls too long for the model, is shown as head and tail, halved until
        it fits. Raises `InvalidRecord` (`judge_unreadable` when too little mass is on the labels twice,
        `judge_too_long`, `judge_refused`), `Transient` and `Fatal`.
        """
        text = conversation_text([{"role": m.role, "content": m.content} for m in messages])
        started = time.perf_counter()
        for last in (False, True):
            readings, seen = await self._ask(text)
            mass = min(reading.label_mass for reading in readings.values())
            if mass >= self._settings.min_label_mass and all(math.isfinite(r.value) for r in readings.values()):
                break
            if last:
                raise InvalidRecord(
                    "judge_unreadable",
                    f"the judge put {mass:.3f} of its probability on the labels, twice (judge.min_label_mass is "
                    f"{self._settings.min_label_mass:g})",
                )
        rating = Rating(
            difficulty=readings[Question.difficulty].value,
            quality=readings[Question.quality].value,
            category=category_of(readings[Question.category]),
            label_mass=mass,
            seen_chars=seen,
            distribution={
                question.value: [round(reading.probabilities[label], 4) for label in labels_of(question)]
                for question, reading in readings.items()
            },
        )
        if self._metrics is not None:
            self._metrics.judge_seconds.observe(time.perf_counter() - started)
            self._metrics.judge_label_mass.observe(rating.label_mass)
            self._metrics.judge_difficulty.observe(rating.difficulty)
            self._metrics.judge_quality.observe(rating.quality)
            if seen < len(text):
                self._metrics.judge_shortened.inc()
        return rating

    async def _ask(self, text: str) -> tuple[dict[Question, Reading], int]:
        room = min(self._settings.max_chars, max(len(text), 1))
        while True:
            prompts = judge_prompts(shorten(text, room), self.rubric)
            try:
                answers = await self._pool.completions(
                    [prompts[question] for question in ASKED_OF_PROMPTS], model=self._settings.model
                )
            except TooLong as error:
                room //= 2
                if room < LEAST_CHARS:
                    raise InvalidRecord("judge_too_long", str(error)) from None
                continue
            except BadRequest as error:
                raise InvalidRecord("judge_refused", str(error)) from None
            if self._metrics is not None:
                self._metrics.judge_tokens.inc(answers[0].prompt_tokens)
            readings = {
                question: read(answer.top_logprobs, labels_of(question))
                for question, answer in zip(ASKED_OF_PROMPTS, answers, strict=True)
            }
            return readings, min(room, len(text))


def identity_of(settings: JudgeSettings) -> str:
    """The id of the judge that these settings describe. Raises `SettingsError` when its rubric cannot be read."""
    return judge_id(settings.model, settings.revision, _rubric(settings))


def _rubric(settings: JudgeSettings) -> str:
    if settings.rubric is None:
        return RUBRIC
    try:
        text = settings.rubric.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings: judge.rubric: cannot read {settings.rubric}: {error}") from None
    if not text.strip():
        raise SettingsError(f"settings: judge.rubric: {settings.rubric} is empty")
    return text
