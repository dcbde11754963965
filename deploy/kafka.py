"""What the commands read from Kafka, with kafka-python (its own loop: keep it out of asyncio). No consumer group."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from streams.errors import Fatal, Transient
from streams.forgotten import ForgottenList
from streams.records import Forgotten, decode
from streams.settings import KafkaSettings, Settings
from streams.tls import kafka_connection
from streams.topics import topic_names

BOOTSTRAP_MS = 5_000
"""A command says within seconds that the broker is not there."""
REQUEST_MS = 15_000
POLL_MS = 500
SILENCE_S = 15.0
"""A fetch is answered within half a second, with records or without."""


@contextmanager
def translated(kafka: KafkaSettings) -> Iterator[None]:
    """Errors of kafka-python become `Transient` with the address and what to do."""
    from kafka.errors import KafkaError

    try:
        yield
    except (KafkaError, OSError, ValueError) as error:
        raise Transient(
            f"Kafka at {kafka.bootstrap} is not reachable ({error}): start it, or set kafka.bootstrap"
        ) from None


def new_consumer(kafka: KafkaSettings, group: str | None = None) -> Any:
    """A consumer that joins no group and commits nothing; `group` is for looking up its committed offsets."""
    from kafka import KafkaConsumer

    return KafkaConsumer(
        **kafka_connection(kafka),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        bootstrap_timeout_ms=BOOTSTRAP_MS,
        request_timeout_ms=REQUEST_MS,
    )


@dataclass(frozen=True)
class Message:
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    ts: int = 0
    """Epoch milliseconds, the broker's."""


class Follower:
    """Reads whole topics from their beginning and then goes on; used by one thread. Raises `Transient`."""

    def __init__(self, kafka: KafkaSettings, topics: Iterable[str]) -> None:
        from kafka import TopicPartition

        self._kafka = kafka
        with translated(kafka):
            self._consumer = new_consumer(kafka)
            self._all = [
                TopicPartition(topic, partition)
                for topic in topics
                for partition in sorted(self._consumer.partitions_for_topic(topic) or ())
            ]
            self._consumer.assign(self._all)
            if self._all:
                self._consumer.seek_to_beginning(*self._all)

    def poll(self, timeout_s: float) -> list[Message]:
        """What has come; waits up to `timeout_s` for the first."""
        if not self._all:
            return []
        with translated(self._kafka):
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        return [
            Message(
                tp.topic,
                tp.partition,
                record.offset,
                record.key,
                record.value or b"",
                tuple(record.headers or ()),
                record.timestamp,
            )
            for tp, records in batches.items()
            for record in records
        ]

    def until_end(self) -> Iterator[Message]:
        """Everything that is in the topics now. Raises `Transient` when the broker goes silent on the way."""
        if not self._all:
            return
        with translated(self._kafka):
            ends = self._consumer.end_offsets(self._all)
        heard = time.monotonic()
        while True:
            batch = self.poll(POLL_MS / 1000)
            yield from batch
            if batch:
                heard = time.monotonic()
            elif self._reached(ends):
                return
            elif time.monotonic() - heard > SILENCE_S:
                raise Transient(
                    f"Kafka at {self._kafka.bootstrap} sent nothing for {SILENCE_S:g} s: look at the broker"
                )

    def _reached(self, ends: dict[Any, int]) -> bool:
        """Tansu's answer about the end is short by the last batch; what a fetch tells (the high water) is right."""
        with translated(self._kafka):
            return all(
                self._consumer.position(tp) >= max(end, self._consumer.highwater(tp) or 0)
                and self._consumer.highwater(tp) is not None
                for tp, end in ends.items()
            )

    def close(self) -> None:
        """Ends the connection."""
        self._consumer.close()


def read_topics(kafka: KafkaSettings, *topics: str) -> list[Message]:
    """Everything in the topics now; nothing of topics that do not exist."""
    follower = Follower(kafka, topics)
    try:
        return list(follower.until_end())
    finally:
        follower.close()


def forgotten_of(kafka: KafkaSettings) -> ForgottenList:
    """What is forgotten as of now. Raises `Transient`, and `Fatal` for records made with another key."""
    return forgotten_in(kafka, read_topics(kafka, topic_names(kafka).forgotten))


def forgotten_in(kafka: KafkaSettings, messages: Iterable[Message]) -> ForgottenList:
    """The same from messages that were read; those of other topics are passed over."""
    found = ForgottenList.of(kafka)
    for message in messages:
        if message.value and message.topic == topic_names(kafka).forgotten:
            try:
                found.take(decode(Forgotten, message.value), message.offset)
            except (msgspec.MsgspecError, ValueError) as error:
                raise Fatal(f"{message.topic}: offset {message.offset} cannot be read: {error}") from None
    return found


def ends_of(kafka: KafkaSettings, topic: str) -> dict[int, int]:
    """The next offset of each partition, by a fetch at the end (the end that Tansu tells is short by a batch)."""
    from kafka import TopicPartition

    with translated(kafka):
        consumer = new_consumer(kafka)
        try:
            tps = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
            if not tps:
                return {}
            ends = consumer.end_offsets(tps)
            consumer.assign(tps)
            for tp in tps:
                consumer.seek(tp, ends[tp])
            heard = time.monotonic()
            while any(consumer.highwater(tp) is None for tp in tps):
                if time.monotonic() - heard > SILENCE_S:
                    raise Transient(f"Kafka at {kafka.bootstrap} sent nothing for {SILENCE_S:g} s: look at the broker")
                consumer.poll(timeout_ms=POLL_MS)
            return {tp.partition: max(ends[tp], consumer.highwater(tp)) for tp in tps}
        finally:
            consumer.close()


@dataclass(frozen=True)
class TopicState:
    """A topic as one group sees it."""

    partitions: int
    """0: the topic does not exist."""
    records: int
    """Between the log's begin and end."""
    lag: int | None
    """Records that the group has not committed; None: no group reads it."""
    written: int = 0
    """Records that were ever written: the sum of the log's ends."""


def readers_of(settings: Settings) -> dict[str, str | None]:
    """The group that consumes each topic; None where none does."""
    names, workers = topic_names(settings.kafka), settings.kafka.group
    readers: dict[str, str | None] = dict.fromkeys(names.all())
    readers |= {names.raw: workers, names.accepted: workers, names.scored: workers}
    readers[names.requests] = settings.training.group
    return readers


def topic_states(kafka: KafkaSettings, readers: dict[str, str | None]) -> dict[str, TopicState]:
    """State of each topic in `readers` (topic → the group that consumes it, or None). Raises `Transient`."""
    from kafka import TopicPartition

    found: dict[str, TopicState] = {}
    with translated(kafka):
        consumers = {group: new_consumer(kafka, group) for group in set(readers.values())}
        try:
            for topic, group in readers.items():
                consumer = consumers[group]
                tps = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
                if not tps:
                    found[topic] = TopicState(0, 0, None)
                    continue
                begins, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
                lag = None
                if group is not None:
                    # Committed is the *next* offset to read; nothing committed: all of it is ahead.
                    committed = {tp: consumer.committed(tp) for tp in tps}
                    # An end under it is Tansu's, which is short by the last batch.
                    lag = sum(max(0, ends[tp] - (committed[tp] or begins[tp])) for tp in tps)
                held = sum(ends[tp] - begins[tp] for tp in tps)
                found[topic] = TopicState(len(tps), held, lag, sum(ends.values()))
        finally:
            for consumer in consumers.values():
                consumer.close()
    return found
