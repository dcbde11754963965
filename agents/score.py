"""`prompts.accepted` → `prompts.scored`: difficulty, quality and category by the judge."""

import asyncio

import msgspec

from streams.app import Inbound
from streams.errors import InvalidRecord
from streams.judge import Judge, Rating
from streams.producer import Producer
from streams.records import AcceptedPrompt, ScoredPrompt, decode
from streams.topics import Topics


def scored(prompt: AcceptedPrompt, rating: Rating, judge: str) -> ScoredPrompt:
    """The record of `prompts.scored`; `judge` is the id of who rated."""
    return ScoredPrompt(
        **msgspec.structs.asdict(prompt),
        difficulty=rating.difficulty,
        quality=rating.quality,
        category=rating.category,
        label_mass=rating.label_mass,
        judge=judge,
        distribution=rating.distribution,
        seen_chars=rating.seen_chars,
    )


class Score:
    """The handler of the hop. It rates nothing before `ready` is set: a judge is measured first (`agents.anchors`)."""

    def __init__(self, topics: Topics, *, judge: Judge, producer: Producer, ready: asyncio.Event | None = None) -> None:
        self._topics = topics
        self._judge = judge
        self._producer = producer
        self._ready = ready

    async def __call__(self, record: Inbound) -> str:
        """Rates the prompt and passes it on with its rating and the judge's id."""
        try:
            prompt = decode(AcceptedPrompt, record.value)
        except msgspec.MsgspecError as error:
            raise InvalidRecord("not_accepted_record", str(error)) from None
        if self._ready is not None:
            await self._ready.wait()
        rating = await self._judge.rate(prompt.messages)
        rated = scored(prompt, rating, self._judge.identity)
        await self._producer.send(self._topics.scored, rated, key=prompt.id, headers=list(record.headers))
        return "scored"
