"""Reading which runs have ended: a consumer that has lost its broker must not hold up the trigger."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition

from agents import trigger
from agents.trigger import EndedRuns
from streams.errors import Transient
from streams.records import TrainEvent, encode
from streams.settings import KafkaSettings
from streams.topics import topic_names


class Message:
    def __init__(self, value: bytes) -> None:
        self.value = value


class Consumer:
    """Gives its batches one after the other; then it is at the end, or silent for ever."""

    def __init__(self, batches: Sequence[list[bytes]], silent: bool) -> None:
        self.batches = list(batches)
        self.silent = silent
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.partitions = partitions

    def assignment(self) -> list[TopicPartition]:
        return self.partitions

    async def seek_to_beginning(self, *_: TopicPartition) -> None: ...

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Message]]:
        await asyncio.sleep(0.01)
        return {tp: [Message(value) for value in self.batches.pop(0)]} if self.batches else {}

    def highwater(self, tp: TopicPartition) -> int | None:
        return None if self.silent else 1

    async def position(self, tp: TopicPartition) -> int:
        return 1


def done(run: str) -> bytes:
    return encode(TrainEvent(run_id=run, phase="done", metrics={}, ts=1))


async def test_a_silent_consumer_is_given_up_and_the_next_one_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers: list[Any] = [Consumer([[done("a")]], silent=True), Consumer([[done("a")], [done("b")]], silent=False)]
    silent = consumers[0]
    monkeypatch.setattr(trigger, "AIOKafkaConsumer", lambda **_: consumers.pop(0))
    monkeypatch.setattr(trigger, "QUIET_S", 0.2)
    ended = EndedRuns(KafkaSettings(), topic_names(KafkaSettings()))
    with pytest.raises(Transient, match="cannot read train"):
        await asyncio.wait_for(ended.read(), 5)
    assert silent.stopped
    assert await asyncio.wait_for(ended.read(), 5) == {"a", "b"}


async def test_a_long_topic_is_read_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [[done(f"r{n}")] for n in range(250)]  # 2.5 s in all
    monkeypatch.setattr(trigger, "AIOKafkaConsumer", lambda **_: Consumer(batches, silent=False))
    monkeypatch.setattr(trigger, "QUIET_S", 1.5)
    ended = EndedRuns(KafkaSettings(), topic_names(KafkaSettings()))
    assert len(await ended.read()) == 250
