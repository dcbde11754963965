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
            tps = [TopicPartition(topic, p) for p in sorted(self._consumer.partitions_for_topic(topic) or ())]
            if not tps:
                return seen
            begins, ends = self._consumer.beginning_offsets(tps), self._consumer.end_offsets(tps)
            seen.deleted = sum(begins.values())
            # The newest piece of all partitions at once, then the older ones, one partition after the other.
            older = {tp: max(begins[tp], ends[tp] - CHUNK) for tp in tps}
            self._read(older, ends, True, wanted, deadline, seen)
            first = partition_of(key, len(tps)) if key is not None else -1
            for tp in sorted(tps, key=lambda tp: (tp.partition != first, tp.partition)):
                end = older[tp]
                while end > begins[tp] and time.monotonic() < deadline:
                    start = max(begins[tp], end - CHUNK)
                    self._read({tp: start}, {tp: end}, False, wanted, deadline, seen)
                    end = start
                seen.not_read += end - begins[tp]
        seen.found.sort(key=lambda found: (found.ts, found.partition, found.offset))
        return seen

    def at(self, topic: str, partition: int, offset: int) -> Found | None:
        """The record at a place; None when the log does not hold it (any more)."""
        from kafka import TopicPartition

        tp = TopicPartition(topic, partition)
        with translated(self._kafka):
            if partition not in (self._consumer.partitions_for_topic(topic) or ()):
                return None
            self._assign({tp: offset})
            if offset < self._consumer.beginning_offsets([tp])[tp]:
                return None
            heard = time.monotonic()
            records: list[Any] = []
            while not records and not self._reached(tp, 0, newest=True):
                if time.monotonic() - heard > SILENCE_S:
                    raise self._silent()
                records = self._consumer.poll(timeout_ms=POLL_MS).get(tp, [])
        found = next((record for record in records if record.offset == offset), None)
        return None if found is None else _found(found)

    def _read(
        self,
        starts: dict[Any, int],
        ends: dict[Any, int],
        newest: bool,
        wanted: Callable[[bytes], bool],
        deadline: float,
        seen: Searched,
    ) -> None:
        """Reads from `starts` to `ends` (what is `newest`: to the end of the log), or until the deadline."""
        self._assign(starts)
        heard = time.monotonic()
        while left := [tp for tp, end in ends.items() if not self._reached(tp, end, newest)]:
            now = time.monotonic()
            if now > deadline:
                seen.not_read += sum(max(0, ends[tp] - self._consumer.position(tp)) for tp in left)
                return
            batches = self._consumer.poll(timeout_ms=POLL_MS)
            if batches:
                heard = now
            elif now - heard > SILENCE_S:
                raise self._silent()
            for tp, records in batches.items():
                for record in records:
                    if newest or record.offset < ends[tp]:
                        seen.records += 1
                        if wanted(record.value or b""):
                            seen.found.append(_found(record))

    def _assign(self, starts: dict[Any, int]) -> None:
        self._consumer.assign(list(starts))
        for tp, start in starts.items():
            self._consumer.seek(tp, start)

    def _reached(self, tp: Any, end: int, newest: bool) -> bool:
        """What a fetch tells (the high water) is the end of a log; Tansu's own answer is short by the last batch."""
        position, high = self._consumer.position(tp), self._consumer.highwater(tp)
        return bool(position >= end and (not newest or (high is not None and position >= high)))

    def _silent(self) -> Transient:
        return Transient(f"Kafka at {self._kafka.bootstrap} sent nothing for {SILENCE_S:g} s: look at the broker")


def partition_of(key: str, partitions: int) -> int:
    """Where the default partitioner puts a key (murmur2, as in Kafka's own clients)."""
    from kafka.partitioner.default import murmur2

    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def _found(record: Any) -> Found:
    return Found(record.topic, record.partition, record.offset, record.timestamp, record.value or b"")
