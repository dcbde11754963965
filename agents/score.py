"""`prompts.accepted` → `prompts.scored`: difficulty, quality and category by the judge."""

import asyncio
from collections.abc import Callable

import msgspec

from agents.screen import Look, Screen
from streams.app import Inbound
from streams.errors import InvalidRecord
from streams.forgotten import ForgottenList
from streams.judge import Judge, Rating
from streams.producer import Producer
from streams.records import AcceptedPrompt, CuratedOutcome, ScoredPrompt, decode
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
    """The handler of the hop. It rates nothing before `ready` is set: a judge is measured first (`agents.anchors`).

    With a `screen`, the judge is not asked about prompts that are surely too easy.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        judge: Judge,
        producer: Producer,
        now_ms: Callable[[], int],
        screen: Screen | None = None,
        ready: asyncio.Event | None = None,
        forgotten: ForgottenList | None = None,
    ) -> None:
        self._topics = topics
        self._judge = judge
        self._producer = producer
        self._now_ms = now_ms
        self._screen = screen
        self._ready = ready
        self._forgotten = forgotten if forgotten is not None else ForgottenList()

    async def __call__(self, record: Inbound) -> str:
        """Rates the prompt and passes it on with its rating and the judge's id."""
        try:
            prompt = decode(AcceptedPrompt, record.value)
        except msgspec.MsgspecError as error:
            raise InvalidRecord("not_accepted_record", str(error)) from None
        if self._ready is not None:
            await self._ready.wait()
        if self._forgotten.prompt(prompt) is not None:
            return "forgotten"
        # Held-out prompts compete among themselves: the threshold is not theirs.
        look = self._screen.look(prompt) if self._screen is not None and prompt.split == "train" else None
        if look is not None and look.skip:
            outcome = self._predicted_below(prompt, look)
            await self._producer.send(self._topics.curated, outcome, key=prompt.id, headers=list(record.headers))
            return outcome.outcome
        rating = await self._judge.rate(prompt.messages)
        if look is not None and self._screen is not None:
            self._screen.learn(look, prompt, rating.difficulty)
        if self._forgotten.prompt(prompt) is not None:  # while the judge was busy
            return "forgotten"
        rated = scored(prompt, rating, self._judge.identity)
        await self._producer.send(self._topics.scored, rated, key=prompt.id, headers=list(record.headers))
        return "scored"

    def _predicted_below(self, prompt: AcceptedPrompt, look: Look) -> CuratedOutcome:
        return CuratedOutcome(
            id=prompt.id,
            outcome="predicted_below",
            threshold=look.threshold,
            detail=f"difficulty {look.predicted:.2f} predicted, margin {look.margin:.2f}",
            value=look.predicted,
            ts=self._now_ms(),
        )
