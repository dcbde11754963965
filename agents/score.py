"""`prompts.accepted` → `prompts.scored`: difficulty, quality and category by the judge."""

import msgspec

from streams.app import Inbound
from streams.errors import InvalidRecord
from streams.judge import Judge
from streams.producer import Producer
from streams.records import AcceptedPrompt, ScoredPrompt, decode
from streams.topics import Topics


class Score:
    """The handler of the hop."""

    def __init__(self, topics: Topics, *, judge: Judge, producer: Producer) -> None:
        self._topics = topics
        self._judge = judge
        self._producer = producer

    async def __call__(self, record: Inbound) -> str:
        """Rates the prompt and passes it on with its rating and the judge's id."""
        try:
            prompt = decode(AcceptedPrompt, record.value)
        except msgspec.MsgspecError as error:
            raise InvalidRecord("not_accepted_record", str(error)) from None
        rating = await self._judge.rate(prompt.messages)
        scored = ScoredPrompt(
            **msgspec.structs.asdict(prompt),
            difficulty=rating.difficulty,
            quality=rating.quality,
            category=rating.category,
            label_mass=rating.label_mass,
            judge=self._judge.identity,
            distribution=rating.distribution,
            seen_chars=rating.seen_chars,
        )
        await self._producer.send(self._topics.scored, scored, key=prompt.id, headers=list(record.headers))
        return "scored"
