"""`prompts.raw` → `prompts.accepted`: normalise, refuse what is too short or long, in another language, of a
benchmark or a repeat; redact, set some aside."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from agents.rules.contamination import Contamination
from agents.rules.language import LanguageDetector
from agents.rules.length import CountTokens, tokens_of
from agents.rules.normalise import normalise, prompt_id
from agents.rules.parse import parse
from agents.rules.redact import Redactor, add
from agents.rules.split import split
from streams.app import Inbound
from streams.batcher import Batcher
from streams.errors import InvalidRecord
from streams.forgotten import ForgottenList
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


# KEYS: of prompts.  ARGV: for each, the id that must have brought it.  Returns how many were deleted.
FORGET = """
local count = 0
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[i] then count = count + redis.call('DEL', key) end
end
return count
"""


class Seen:
    """Which id brought a prompt first, for a time window: one small key a prompt in Redis."""

    def __init__(self, client: Redis, namespace: str, window_s: int) -> None:
        self._client = client
        self._prefix = f"{{{namespace}}}:seen:"
        self._window_s = window_s
        self._forget = client.register_script(FORGET)
        self._batcher: Batcher[_Sighting, str] = Batcher(self._flush, BATCH)

    async def first(self, prompt_id: str, id: str) -> str:
        """The id that brought this prompt first: `id` itself if it is new (or a redelivery)."""
        return await self._batcher.add(_Sighting(prompt_id, id))

    async def forget(self, sightings: Collection[tuple[str, str]]) -> int:
        """Forget (prompt_id, id): that the prompt was seen, where this id brought it. Returns how many there were."""
        count, listed = 0, list(sightings)
        for start in range(0, len(listed), BATCH):
            part = listed[start : start + BATCH]
            with translate(self._client):
                count += await self._forget(keys=[self._key(p) for p, _ in part], args=[id for _, id in part])
        return count

    def _key(self, prompt_id: str) -> str:
        # 128 of the 256 bits: a collision among 10^12 prompts has a chance of 10^-15
        return self._prefix + prompt_id[:32]

    async def _flush(self, sightings: Sequence[_Sighting]) -> list[str]:
        with translate(self._client):
            async with self._client.pipeline(transaction=False) as pipe:
                for sighting in sightings:
                    key = self._key(sighting.prompt_id)
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
        languages: LanguageDetector,
        count_tokens: CountTokens,
        redactor: Redactor | None,
        producer: Producer,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        forgotten: ForgottenList | None = None,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._seen = seen
        self._contamination = contamination
        self._languages = languages
        self._count_tokens = count_tokens
        self._redactor = redactor
        self._producer = producer
        self._metrics = metrics
        self._now_ms = now_ms
        self._forgotten = forgotten if forgotten is not None else ForgottenList()

    async def __call__(self, record: Inbound) -> str:
        """Accepts the record or refuses it with an outcome. Raises what `Hop` knows to handle."""
        prompt = self._read(record)
        if self._forgotten.prompt(prompt) is not None:
            return "forgotten"
        refusal = self._refusal(prompt)
        if refusal is None:
            first = await self._seen.first(prompt.prompt_id, prompt.id)
            if first != prompt.id:
                refusal = self._refused(prompt, "exact_repeat", first)
        if refusal is not None:
            await self._producer.send(self._topics.curated, refusal, key=prompt.id)
            return refusal.outcome
        prompt = self._redacted(prompt)
        await self._producer.send(self._topics.accepted, prompt, key=prompt.id, headers=list(record.headers))
        self._metrics.languages.labels(prompt.language or "unknown").inc()
        for kind, count in prompt.redacted.items():
            self._metrics.redactions.labels(kind).inc(count)
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
        prompt.origin = f"{record.topic}:{record.partition}:{record.offset}"
        return prompt

    def _refusal(self, prompt: AcceptedPrompt) -> CuratedOutcome | None:
        """What refuses a prompt by itself, the cheapest rule first. Fills in its length and language."""
        bounds = self._settings
        tokens = prompt.tokens = tokens_of(prompt.messages, self._count_tokens)
        if tokens < bounds.min_tokens:
            return self._refused(prompt, "too_short", None, tokens, bounds.min_tokens)
        if bounds.max_tokens is not None and tokens > bounds.max_tokens:
            return self._refused(prompt, "too_long", None, tokens, bounds.max_tokens)
        prompt.language, confidence = self._languages.detect(prompt.messages)
        if bounds.languages is not None and prompt.language not in (None, "zxx", *bounds.languages):
            return self._refused(prompt, "wrong_language", prompt.language, confidence, bounds.language_confidence)
        match = self._contamination.find(prompt.messages)
        if match is not None:
            return self._refused(prompt, "contaminated", match.benchmark, match.overlap, bounds.decontaminate_overlap)
        return None

    def _redacted(self, prompt: AcceptedPrompt) -> AcceptedPrompt:
        """Without personal data and secrets in its messages, its response and its metadata."""
        if self._redactor is None:
            return prompt
        prompt.messages, prompt.redacted = self._redactor.messages(prompt.messages)
        if prompt.response is not None:
            prompt.response, counts = self._redactor.text(prompt.response)
            add(prompt.redacted, counts)
        for name, value in prompt.metadata.items():
            prompt.metadata[name], counts = self._redactor.text(value)
            add(prompt.redacted, counts)
        return prompt

    def _refused(
        self,
        prompt: AcceptedPrompt,
        outcome: Outcome,
        detail: str | None,
        value: float | None = None,
        bound: float | None = None,
    ) -> CuratedOutcome:
        return CuratedOutcome(
            id=prompt.id,
            outcome=outcome,
            detail=detail,
            value=value,
            bound=bound,
            origin=prompt.origin,
            ts=self._now_ms(),
        )
