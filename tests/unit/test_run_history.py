"""Reading when runs began and ended: a consumer that has lost its broker must not hold up the trigger."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams import tail
from streams.errors import Transient
from streams.records import Phase, TrainEvent, encode
from streams.run_history import RunHistory, RunSpan
from streams.settings import KafkaSettings
from streams.topics import topic_names


class Message:
    offset = 0

    def __init__(self, value: bytes) -> None:
        self.value = value


class Consumer:
    """Gives its batches one after the other; then it is at the end, or silent for ever."""

    def __init__(self, batches: Sequence[list[bytes]], silent: bool) -> None:
        self.batches = list(batches)
        self.silent = silent
        self.stopped = False
        self.polls = 0

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.partitions = partitions

    async def seek_to_beginning(self, *_: TopicPartition) -> None: ...

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Message]]:
        await asyncio.sleep(0.01)
        self.polls += 1
        return {tp: [Message(value) for value in self.batches.pop(0)]} if self.batches else {}

    def last_poll_timestamp(self, tp: TopicPartition) -> int:
        return self.polls

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 1)

    def highwater(self, tp: TopicPartition) -> int | None:
        return None if self.silent else 1

    async def position(self, tp: TopicPartition) -> int:
        return 1


def event(run: str, phase: Phase, ts: int) -> bytes:
    return encode(TrainEvent(run_id=run, phase=phase, metrics={}, ts=ts))


def done(run: str) -> bytes:
    return event(run, "done", 1)


async def test_a_silent_consumer_is_given_up_and_the_next_one_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers: list[Any] = [Consumer([[done("a")]], silent=True), Consumer([[done("a")], [done("b")]], silent=False)]
    silent = consumers[0]
    monkeypatch.setattr(tail, "AIOKafkaConsumer", lambda **_: consumers.pop(0))
    monkeypatch.setattr(tail, "QUIET_S", 0.2)
    history = RunHistory(KafkaSettings(), topic_names(KafkaSettings()))
    with pytest.raises(Transient, match="cannot read train"):
        await asyncio.wait_for(history.read(), 5)
    assert silent.stopped
    assert set(await asyncio.wait_for(history.read(), 5)) == {"a", "b"}


async def test_a_long_topic_is_read_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [[done(f"r{n}")] for n in range(250)]  # 2.5 s in all
    monkeypatch.setattr(tail, "AIOKafkaConsumer", lambda **_: Consumer(batches, silent=False))
    monkeypatch.setattr(tail, "QUIET_S", 1.5)
    history = RunHistory(KafkaSettings(), topic_names(KafkaSettings()))
    assert len(await history.read()) == 250


async def test_a_run_is_from_its_first_to_its_final_event_whatever_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [event("a", "queued", 10), event("a", "sft", 20), event("b", "queued", 50), b"no event", b""]
    second = [
        event("a", "queued", 25),  # another trainer goes on, and does not know what was sent
        event("a", "rejected", 40),
        event("a", "rejected", 90),
        event("b", "sft", 45),  # by a clock that was put back
        event("c", "failed", 60),  # refused at once
    ]
    monkeypatch.setattr(tail, "AIOKafkaConsumer", lambda **_: Consumer([first, second], silent=False))
    history = RunHistory(KafkaSettings(), topic_names(KafkaSettings()))
    expected = {"a": RunSpan(10, 40, True), "b": RunSpan(45, 50, False), "c": RunSpan(60, 60, True)}
    assert await history.read() == expected
    await history.close()
    assert await history.read() == expected, "read again from the beginning after an outage"
