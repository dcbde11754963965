"""`prompts.raw` → `prompts.accepted`: normalise, refuse repeats and benchmark prompts, redact, set some aside."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from agents.rules.contamination import Contamination
from agents.rules.normalise import normalise, prompt_id
from agents.rules.parse import parse
from agents.rules.redact import redact, redact_messages
from agents.rules.split import split
from streams.app import Inbound
from streams.batcher import Batcher
from streams.errors import InvalidRecord
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import AcceptedPrompt, CuratedOutcome, Outcome
from streams.redis_client import translate
from streams.settings import IngestSettings
from streams.topics import Topics

BATCH = 256
"""Look-ups of exact repeats in one round trip."""


@dataclass(frozen=True)
class _Sighting:
    prompt_id: str
    id: str


class Seen:
    """Which id brought a prompt first, for a time window: one small key a prompt in Redis."""

    def __init__(self, client: Redis, namespace: str, window_s: int) -> None:
        self._client = client
        self._prefix = f"{{{namespace}}}:seen:"
        self._window_s = window_s
        self._batcher: Batcher[_Sighting, str] = Batcher(self._flush, BATCH)

    async def first(self, prompt_id: str, id: str) -> str:
        """The id that brought this prompt first: `id` itself if it is new (or a redelivery)."""
        return await self._batcher.add(_Sighting(prompt_id, id))

    async def _flush(self, sightings: Sequence[_Sighting]) -> list[str]:
        with translate(self._client):
            async with self._client.pipeline(transaction=False) as pipe:
                for sighting in sightings:
                    # 128 of the 256 bits: a collision among 10^12 prompts has a chance of 10^-15
                    key = self._prefix + sighting.prompt_id[:32]
                    pipe.set(key, sighting.id, nx=True, get=True, ex=self._window_s)
                before = await pipe.execute()
        return [
            sighting.id if first is None else (first.decode() if isinstance(first, bytes) else str(first))
            for sighting, first in zip(sightings, before, strict=True)
        ]


class Ingest:
    """The handler of the hop."""

    def __init__(
        self,
        settings: IngestSettings,
        topics: Topics,
        *,
        seen: Seen,
        contamination: Contamination,
        producer: Producer,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._seen = seen
        self._contamination = contamination
        self._producer = producer
        self._metrics = metrics
        self._now_ms = now_ms

    async def __call__(self, record: Inbound) -> str:
        """Accepts the record or refuses it with an outcome. Raises what `Hop` knows to handle."""
        prompt = self._read(record)
        benchmark = self._contamination.find(prompt.messages)
        if benchmark is not None:
            return await self._refuse(prompt, "contaminated", benchmark)
        first = await self._seen.first(prompt.prompt_id, prompt.id)
        if first != prompt.id:
            return await self._refuse(prompt, "exact_repeat", first)
        await self._producer.send(
            self._topics.accepted, self._redacted(prompt), key=prompt.id, headers=list(record.headers)
        )
        return "accepted"

    def _read(self, record: Inbound) -> AcceptedPrompt:
        prompt = parse(
            record.value,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            broker_ms=record.timestamp_ms,
            max_bytes=self._settings.max_bytes,
        )
        prompt.messages = normalise(prompt.messages)
        if not prompt.messages[-1].content:
            raise InvalidRecord("no_prompt", "nothing is left of the prompt without control characters")
        prompt.prompt_id = prompt_id(prompt.messages)
        prompt.split = split(prompt.prompt_id, self._settings.eval_share)
        return prompt

    def _redacted(self, prompt: AcceptedPrompt) -> AcceptedPrompt:
        if not self._settings.redact:
            return prompt
        prompt.messages, prompt.redacted = redact_messages(prompt.messages)
        if prompt.response is not None:
            prompt.response, counts = redact(prompt.response)
            for kind, count in counts.items():
                prompt.redacted[kind] = prompt.redacted.get(kind, 0) + count
        for kind, count in prompt.redacted.items():
            self._metrics.redactions.labels(kind).inc(count)
        return prompt

    async def _refuse(self, prompt: AcceptedPrompt, outcome: Outcome, detail: str) -> str:
        record = CuratedOutcome(id=prompt.id, outcome=outcome, detail=detail, ts=self._now_ms())
        await self._producer.send(self._topics.curated, record, key=prompt.id)
        return outcome
