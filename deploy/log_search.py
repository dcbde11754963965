"""Looking for one record in a topic: the newest first, within a time, and saying what was not looked at."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deploy.kafka import POLL_MS, SILENCE_S, new_consumer, translated
from streams.errors import Transient
from streams.settings import KafkaSettings

CHUNK = 20_000
"""Offsets that are read at a stretch: a topic is read from its end to its begin in pieces of this size."""


@dataclass(frozen=True)
class Found:
    """A record of a topic."""

    topic: str
    partition: int
    offset: int
    ts: int
    """Epoch milliseconds, the broker's."""
    value: bytes

    @property
    def place(self) -> str:
        """`topic:partition:offset`."""
        return f"{self.topic}:{self.partition}:{self.offset}"


@dataclass
class Searched:
    """What a search has seen of a topic."""

    topic: str
    found: list[Found] = field(default_factory=list)
    records: int = 0
    """Looked at."""
    not_read: int = 0
    """Offsets that the time was too short for: the oldest ones."""
    deleted: int = 0
    """Offsets before the begin of the log: retention has deleted them."""


class LogSearch:
    """Searches topics with one consumer, outside of any group. Raises `Transient`. Close it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        with translated(kafka):
            self._consumer = new_consumer(kafka)

    def close(self) -> None:
        """Ends the connection."""
        self._consumer.close()

    def search(self, topic: str, wanted: Callable[[bytes], bool], seconds: float, key: str | None = None) -> Searched:
        """The records of a topic whose value is `wanted`, the oldest first.

        With `key`, the partition that haypile's producer puts it in comes first. A topic that is not there is empty.
        """
        from kafka import TopicPartition

        deadline = time.monotonic() + seconds
        seen = Searched(topic)
        with translated(self._kafka):
            partitions = sorted(self._consumer.partitions_for_topic(topic) or ())
            first = partition_of(key, len(partitions)) if key is not None and partitions else -1
            for partition in sorted(partitions, key=lambda p: (p != first, p)):
                self._partition(TopicPartition(topic, partition), wanted, deadline, seen)
        seen.found.sort(key=lambda found: (found.ts, found.partition, found.offset))
        return seen

    def at(self, topic: str, partition: int, offset: int) -> Found | None:
        """The record at a place; None when the log does not hold it (any more)."""
        from kafka import TopicPartition

        tp = TopicPartition(topic, partition)
        with translated(self._kafka):
            if partition not in (self._consumer.partitions_for_topic(topic) or ()):
                return None
            self._consumer.assign([tp])
            if offset < self._consumer.beginning_offsets([tp])[tp]:
                return None
            self._consumer.seek(tp, offset)
            records = self._poll(tp)
        found = next((record for record in records if record.offset == offset), None)
        return None if found is None else _found(found)

    def _partition(self, tp: Any, wanted: Callable[[bytes], bool], deadline: float, seen: Searched) -> None:
        self._consumer.assign([tp])
        begin, end = self._consumer.beginning_offsets([tp])[tp], self._consumer.end_offsets([tp])[tp]
        seen.deleted += begin
        last = True
        while last or end > begin:
            if time.monotonic() > deadline:
                seen.not_read += end - begin
                return
            start = max(begin, end - CHUNK)
            self._consumer.seek(tp, start)
            while True:
                records = self._poll(tp)
                for record in records:
                    if last or record.offset < end:
                        seen.records += 1
                        if wanted(record.value or b""):
                            seen.found.append(_found(record))
                position = self._consumer.position(tp)
                # What a fetch tells (the high water) is the end; Tansu's own answer is short by the last batch.
                if position >= (max(end, self._consumer.highwater(tp) or 0) if last else end) or not records:
                    break
            end, last = start, False

    def _poll(self, tp: Any) -> list[Any]:
        """The next records; none at the end. `Transient` when the broker goes silent."""
        heard = time.monotonic()
        while time.monotonic() - heard < SILENCE_S:
            records: list[Any] = self._consumer.poll(timeout_ms=POLL_MS).get(tp, [])
            high = self._consumer.highwater(tp)
            if records or (high is not None and self._consumer.position(tp) >= high):
                return records
        raise Transient(f"Kafka at {self._kafka.bootstrap} sent nothing for {SILENCE_S:g} s: look at the broker")


def partition_of(key: str, partitions: int) -> int:
    """Where the default partitioner puts a key (murmur2, as in Kafka's own clients)."""
    from kafka.partitioner.default import murmur2

    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def _found(record: Any) -> Found:
    return Found(record.topic, record.partition, record.offset, record.timestamp, record.value or b"")
