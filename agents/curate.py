"""`prompts.scored` → the buffer: admitted, or refused with a reason. Acked only when Redis has it.

Records of all partitions are gathered into batches, each one atomic call, in the order of the log. The buffer keeps the
offset it has applied: when it is behind (Redis came back older than what was committed), the gap is read again from the
topic first. The log is the truth, Redis a view of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from agents.rules.rank import rank_key
from streams.app import Inbound
from streams.batcher import Batcher
from streams.buffer.base import Buffer, BufferGap, JudgeMismatch, Offer, Position
from streams.errors import Fatal, InvalidRecord, Transient
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import CuratedOutcome, ScoredPrompt, decode
from streams.retry import OutageLog, patiently
from streams.settings import BufferSettings, KafkaSettings
from streams.topics import Topics

log = logging.getLogger(__name__)

BATCH = 128
"""Offers in one atomic call: a few milliseconds of Redis's time."""


@dataclass(frozen=True)
class Scored:
    """A record of `prompts.scored` with its place in the log; `prompt` is None if it cannot be read."""

    partition: int
    offset: int
    prompt: ScoredPrompt | None
    error: str = ""


def read_scored(partition: int, offset: int, value: bytes) -> Scored:
    """Parses a record of the log. Never raises: what cannot be read must still move the position on."""
    try:
        prompt = decode(ScoredPrompt, value)
        rank_key(prompt.difficulty, prompt.ts, None)
        return Scored(partition, offset, prompt)
    except (msgspec.MsgspecError, ValueError) as error:
        return Scored(partition, offset, None, str(error))


class Curator:
    """Applies records of the log to the buffers. Shared by the hop and by `haypile buffer rebuild`."""

    def __init__(self, settings: BufferSettings, main: Buffer, held_out: Buffer, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._main = main
        self._held_out = held_out
        self._now_ms = now_ms

    async def apply(self, records: Sequence[Scored], positions: Sequence[Position]) -> list[CuratedOutcome | None]:
        """Offers records in their order and moves the positions on, in one atomic call of the main buffer.

        Returns the outcome of each record (None for one that cannot be read). What had to go is in the outboxes. Raises
        `BufferGap` (the main buffer has taken nothing), `JudgeMismatch` and `Transient`.
        """
        now = self._now_ms()
        readable = [(record, record.prompt) for record in records if record.prompt is not None]
        # Held-out prompts go first: the main buffer keeps the position, so that after a kill in between they are
        # offered again, which changes nothing.
        held = [self._offer(record, prompt, None) for record, prompt in readable if prompt.split == "eval"]
        if held:
            await self._held_out.offer(held, [])
        offers = [self._offer(record, prompt, self._refusal(prompt, now)) for record, prompt in readable]
        verdicts = await self._main.offer(offers, positions)
        outcomes = iter(verdicts)
        return [None if record.prompt is None else next(outcomes) for record in records]

    def _refusal(self, prompt: ScoredPrompt, now: int) -> CuratedOutcome | None:
        """What refuses a prompt before it competes."""
        if prompt.split == "eval":
            return CuratedOutcome(id=prompt.id, outcome="held_out", ts=now)
        if prompt.quality < self._settings.min_quality:
            detail = f"quality {prompt.quality:.2f} < {self._settings.min_quality:g}"
            return CuratedOutcome(
                id=prompt.id,
                outcome="low_quality",
                detail=detail,
                value=prompt.quality,
                bound=self._settings.min_quality,
                ts=now,
            )
        return None

    def _offer(self, record: Scored, prompt: ScoredPrompt, refusal: CuratedOutcome | None) -> Offer:
        key = rank_key(prompt.difficulty, prompt.ts, self._settings.half_life_s)
        return Offer(prompt=prompt, rank_key=key, partition=record.partition, offset=record.offset, refusal=refusal)


class Log:
    """Reads `prompts.scored` again, outside of any consumer group."""

    def __init__(self, kafka: KafkaSettings, topics: Topics) -> None:
        self._kafka = kafka
        self._topic = topics.scored

    async def committed(self) -> dict[int, int]:
        """The group's committed offset (the next one to read) of each partition. Raises `Transient`."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka.bootstrap)
        try:
            await admin.start()
            [topic] = await admin.describe_topics([self._topic])
            partitions = [TopicPartition(self._topic, p["partition"]) for p in topic["partitions"]]
            offsets = await admin.list_consumer_group_offsets(self._kafka.group, partitions=partitions)
        except (KafkaError, OSError) as error:
            raise Transient(f"Kafka at {self._kafka.bootstrap}: no committed offsets ({error!r})") from None
        finally:
            await admin.close()
        return {tp.partition: at.offset for tp, at in offsets.items() if at.offset > 0}

    async def between(self, partition: int, first: int, end: int) -> AsyncIterator[list[Scored]]:
        """What the log still holds of the offsets `first` to `end` - 1 of a partition, in chunks of up to `BATCH`.

        Offsets that retention has deleted are not there. Raises `Transient`.
        """
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka.bootstrap, enable_auto_commit=False)
        tp = TopicPartition(self._topic, partition)
        try:
            await consumer.start()
            consumer.assign([tp])
            start = max(first, (await consumer.beginning_offsets([tp]))[tp])
            consumer.seek(tp, start)
            while start < end:
                batches = await consumer.getmany(tp, timeout_ms=1000, max_records=BATCH)
                messages = [m for m in batches.get(tp, []) if m.offset < end]
                if messages:
                    yield [read_scored(partition, m.offset, m.value or b"") for m in messages]
                start = await consumer.position(tp)
                # The high watermark of the fetch, not the latest offset: Tansu's is short by the size of a batch.
                high = consumer.highwater(tp)
                if not batches and high is not None and start >= high:
                    break
        except (KafkaError, OSError) as error:
            raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} again ({error!r})") from None
        finally:
            await consumer.stop()


async def replay(
    log_of_scored: Log,
    curator: Curator,
    partition: int,
    first: int,
    end: int,
    at: Callable[[int], None] = lambda offset: None,
) -> int:
    """Applies the log's offsets `first` to `end` - 1 of a partition; returns how many records there were.

    `at` is told each offset that it has come to.

    The position ends at `end` - 1 even where the log has holes (retention, compaction).
    """
    count = 0
    async for records in log_of_scored.between(partition, first, end):
        await curator.apply(records, [Position(partition, first, records[-1].offset)])
        count += len(records)
        first = records[-1].offset + 1
        at(first)
    if first < end:
        await curator.apply([], [Position(partition, first, end - 1)])
    return count


class Curate:
    """The handler of the hop."""

    def __init__(
        self,
        curator: Curator,
        buffers: Sequence[Buffer],
        topics: Topics,
        *,
        log_of_scored: Log,
        producer: Producer,
        metrics: Metrics,
    ) -> None:
        self._curator = curator
        self._buffers = buffers
        self._topics = topics
        self._log = log_of_scored
        self._producer = producer
        self._metrics = metrics
        self._outage = OutageLog("curate's buffer", time.monotonic, metrics.health)
        self._batcher: Batcher[Scored, CuratedOutcome | None] = Batcher(self._flush, BATCH)

    async def __call__(self, record: Inbound) -> str:
        """Offers the record; its outcome is in `prompts.curated` when this returns."""
        scored = read_scored(record.partition, record.offset, record.value)
        outcome = await self._batcher.add(scored)
        if outcome is None:
            raise InvalidRecord("not_scored_record", scored.error)
        await self._producer.send(self._topics.curated, outcome, key=outcome.id)
        return outcome.outcome

    async def repair(self) -> int:
        """Replays what is committed but not in Redis, and publishes evictions that were left over.

        A gap also shows when the next record comes; on a quiet topic that may be never. Returns how many records were
        replayed. Raises `Transient`.
        """
        count = 0
        committed = await self._log.committed()
        applied = await self._buffers[0].positions()
        for partition, end in committed.items():
            first = applied.get(partition, -1) + 1
            if first < end:
                count += await self._replay(partition, first, end)
        await self.publish_evictions()
        return count

    async def _replay(self, partition: int, first: int, end: int) -> int:
        log.warning("Redis is behind the log: partition %d, offsets %d to %d", partition, first, end - 1)
        what = f"replay of partition {partition}"

        def at(offset: int) -> None:
            self._metrics.health.bad(what, f"Redis came back without offsets; now at {offset} of {end - 1}")

        at(first)
        try:
            count = await replay(self._log, self._curator, partition, first, end, at)
        finally:
            self._metrics.health.well(what)
        self._metrics.buffer_replayed.inc(count)
        return count

    async def publish_evictions(self) -> int:
        """Publishes what had to go and is not published yet (also by a worker that died); returns how many."""
        count = 0
        for buffer in self._buffers:
            while evicted := await buffer.outbox(BATCH):
                await asyncio.gather(*(self._producer.send(self._topics.curated, e, key=e.id) for e in evicted))
                await buffer.outbox_done(evicted)
                self._metrics.records.labels("curate", "evicted").inc(len(evicted))
                count += len(evicted)
        return count

    async def _flush(self, records: Sequence[Scored]) -> Sequence[CuratedOutcome | None]:
        # The wait for Redis is here, not in each record's task: a batch that is retried keeps its place in the order.
        outcomes = await patiently(lambda: self._apply(records), self._waiting)
        self._outage.worked()
        return outcomes

    async def _apply(self, records: Sequence[Scored]) -> list[CuratedOutcome | None]:
        while True:
            try:
                outcomes = await self._curator.apply(records, positions_of(records))
                await self.publish_evictions()
                return outcomes
            except BufferGap as gap:
                await self._replay(gap.partition, gap.applied + 1, gap.first)
            except JudgeMismatch as error:
                raise Fatal(
                    f"the buffer holds ratings of judge {error.have}, new records are rated by {error.got}: ratings of "
                    "two judges are never compared. Set the earlier judge again, or `haypile buffer rebuild` from a "
                    "topic that the new one has rated"
                ) from None

    def _waiting(self, error: Transient) -> None:
        self._metrics.retries.labels("curate").inc()
        self._outage.failed(error)


def positions_of(records: Sequence[Scored]) -> list[Position]:
    """The range of offsets of each partition in a batch."""
    ranges: dict[int, tuple[int, int]] = {}
    for record in records:
        first, last = ranges.get(record.partition, (record.offset, record.offset))
        ranges[record.partition] = (min(first, record.offset), max(last, record.offset))
    return [Position(partition, first, last) for partition, (first, last) in ranges.items()]
