"""A reward for each answer to a prompt: by the judge's distribution, or by a reward model behind vLLM's /classify."""

import asyncio
import math
from collections.abc import Sequence

from streams.errors import InvalidRecord
from streams.judge import LEAST_CHARS
from streams.records import Message
from streams.rubric import Question, answer_prompt, conversation_text, labels_of, read, shorten
from streams.settings import Settings
from streams.vllm import BadRequest, TooLong, VllmPool


class Rewarder:
    """Rewards answers as the settings say. `pool` is the judge's (kind `judge`) or the reward model's (`classifier`).

    Kind `judge`: 1..9, the mean of the judge's distribution. Kind `classifier`: the model's own scale.
    """

    def __init__(self, pool: VllmPool, settings: Settings, rubric: str) -> None:
        self._pool = pool
        self._reward = settings.reward
        self._judge = settings.judge
        self._rubric = rubric

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """One reward an answer, in order. Raises `InvalidRecord`, `Transient`, `Fatal`."""
        text = conversation_text([{"role": m.role, "content": m.content} for m in messages])
        return list(await asyncio.gather(*(self._one(text, answer) for answer in answers)))

    async def _one(self, text: str, answer: str) -> float:
        room = self._reward.max_chars
        while True:
            # Prompt and answer share the room; what one does not need, the other may have.
            of_text = max(room // 2, room - len(answer))
            of_answer = max(room // 2, room - len(text))
            try:
                return await self._score(shorten(text, of_text), shorten(answer, of_answer))
            except TooLong as error:
                room //= 2
                if room < LEAST_CHARS:
                    raise InvalidRecord("reward_too_long", str(error)) from None
            except BadRequest as error:
                raise InvalidRecord("reward_refused", str(error)) from None

    async def _score(self, text: str, answer: str) -> float:
        model = self._reward.model or self._judge.model  # of a classifier the settings demand its own
        if self._reward.kind == "classifier":
            return (await self._pool.classify([f"{text}\n\n{answer}"], model=model))[0]
        [completion] = await self._pool.completions([answer_prompt(text, answer, self._rubric)], model=model)
        reading = read(completion.top_logprobs, labels_of(Question.answer_quality))
        if reading.label_mass < self._judge.min_label_mass or not math.isfinite(reading.value):
            raise InvalidRecord("reward_unreadable", f"the judge put {reading.label_mass:.3f} on the labels")
        return reading.value
