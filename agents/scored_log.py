"""`prompts.scored` as `curate` reads it, also again: records with their place in the log.

The log is the truth and Redis a view of it, so what Redis has lost is read from here.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from agents.rules.rank import rank_key
from streams.buffer.minhash import Sketch
from streams.errors import Transient
from streams.records import ScoredPrompt, decode
from streams.retry import QUIET_S
from streams.settings import KafkaSettings
from streams.tls import kafka_connection
from streams.topics import Topics

BATCH = 128
"""Offers in one atomic call: a few milliseconds of Redis's time."""


@dataclass(frozen=True)
class Scored:
    """A record of `prompts.scored` with its place in the log; `prompt` is None if it cannot be read."""

    partition: int
    offset: int
    prompt: ScoredPrompt | None
    error: str = ""
    sketch: Sketch | None = None
    """Made when the record comes, while Redis is busy with those before it."""


def read_scored(partition: int, offset: int, value: bytes) -> Scored:
    """Parses a record of the log. Never raises: what cannot be read must still move the position on."""
    try:
        prompt = decode(ScoredPrompt, value)
        rank_key(prompt.difficulty, prompt.ts, None)
        return Scored(partition, offset, prompt)
    except (msgspec.MsgspecError, ValueError) as error:
        return Scored(partition, offset, None, str(error))


class Log:
    """Reads `prompts.scored` again, outside of any consumer group."""

    def __init__(self, kafka: KafkaSettings, topics: Topics) -> None:
        self._kafka = kafka
        self._topic = topics.scored

    async def committed(self) -> dict[int, int]:
        """The group's committed offset (the next one to read) of each partition. Raises `Transient`."""
        admin = AIOKafkaAdminClient(**kafka_connection(self._kafka))
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
        consumer = AIOKafkaConsumer(**kafka_connection(self._kafka), enable_auto_commit=False)
        tp = TopicPartition(self._topic, partition)
        try:
            await consumer.start()
            consumer.assign([tp])
            start = max(first, (await consumer.beginning_offsets([tp]))[tp])
            consumer.seek(tp, start)
            moved = time.monotonic()
            while start < end:
                batches = await consumer.getmany(tp, timeout_ms=1000, max_records=BATCH)
                if not batches and time.monotonic() - moved > QUIET_S:
                    raise Transient(f"Kafka at {self._kafka.bootstrap}: nothing of {self._topic} in {QUIET_S:g} s")
                messages = [m for m in batches.get(tp, []) if m.offset < end]
                if messages:
                    yield [read_scored(partition, m.offset, m.value or b"") for m in messages]
                start = await consumer.position(tp)
                # The high watermark of the fetch, not the latest offset: Tansu's is short by the size of a batch.
                high = consumer.highwater(tp)
                if not batches and high is not None and start >= high:
                    break
                if batches:
                    moved = time.monotonic()
        except (KafkaError, OSError) as error:
            raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} again ({error!r})") from None
        finally:
            await consumer.stop()
