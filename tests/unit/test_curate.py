"""What `curate` does about a Redis that has come back older than the log."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from agents.curate import Curate, Curator
from agents.scored_log import Log, Scored
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import CuratedOutcome
from streams.settings import BufferSettings, Settings
from streams.topics import topic_names
from tests.support.training import scored


class LogInMemory(Log):
    """Two records that are committed."""

    def __init__(self) -> None:
        self.records = [Scored(0, i, scored(f"p{i}", f"a question about {i}")) for i in range(2)]

    async def committed(self) -> dict[int, int]:
        return {0: 2}

    async def between(self, partition: int, first: int, end: int) -> AsyncIterator[list[Scored]]:
        yield self.records[first:end]


class ProducerInMemory(Producer):
    def __init__(self) -> None:
        self.sent: list[tuple[str, msgspec.Struct]] = []

    async def send(self, topic: str, record: msgspec.Struct, *args: Any, **kwargs: Any) -> None:
        self.sent.append((topic, record))


async def test_a_replay_tells_what_became_of_each_record() -> None:
    # With near-duplicates and caps the order decides: it may end otherwise than it was told before.
    topics = topic_names(Settings().kafka)
    buffers = [MemoryBuffer(BufferRules(10), time.time) for _ in range(2)]
    producer = ProducerInMemory()
    curate = Curate(
        Curator(BufferSettings(), *buffers, lambda: 0),
        buffers,
        topics,
        log_of_scored=LogInMemory(),
        producer=producer,
        metrics=Metrics(CollectorRegistry()),
    )
    assert await curate.repair() == 2
    told = [record for topic, record in producer.sent if topic == topics.curated]
    assert [(r.id, r.outcome) for r in told if isinstance(r, CuratedOutcome)] == [
        ("p0", "admitted"),
        ("p1", "admitted"),
    ]
    assert await curate.repair() == 0
    assert len(producer.sent) == 2
