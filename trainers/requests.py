"""The trainer's side of Kafka: requests in, events out. kafka-python, which has a loop of its own: no asyncio here."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streams.errors import Transient
from streams.health import Health
from streams.records import DeadLetter, TrainEvent, TrainRequest, decode, encode
from streams.retry import OutageLog
from streams.settings import Settings
from streams.tls import kafka_connection
from streams.topics import create_topics, topic_names

log = logging.getLogger(__name__)

POLL_MS = 500
AGAIN_S = 5.0
"""Pause after an outage before Kafka is tried again."""
BOOTSTRAP_MS = 10_000
SEND_S = 10.0
"""A record is in Kafka within this, or it is tried again."""

Start = Callable[[TrainRequest], "Future[None]"]


class _Current:
    """The request in progress."""

    def __init__(self, partition: TopicPartition, offset: int, run: "Future[None]") -> None:
        self.partition = partition
        self.offset = offset
        self.run = run


class Requests:
    """Consumes `train.requests` in the caller's thread, one request at a time; publishes from any thread.

    Every trainer reads all partitions: the lease decides who runs, and what is over is over for all. The group only
    keeps the offset, without members: a group whose join hangs (kafka-python waits for it without an end) or whose
    broker has lost a leader would keep every trainer from its work.
    """

    def __init__(self, settings: Settings, stop: threading.Event, health: Health) -> None:
        self._kafka = settings.kafka
        self._group = settings.training.group
        self._topics = topic_names(settings.kafka)
        self._stop = stop
        self._current: _Current | None = None
        self._producer: Any = None
        self._lock = threading.Lock()
        self._outage = OutageLog("train.requests", time.monotonic, health)

    def consume(self, start: Start, check: Callable[[], None]) -> None:
        """Until `stop`: hand each request to `start` and commit it when the future it returns is done.

        `check` is called at least every second and may raise to end all this. While Kafka is away a run goes on; its
        request then comes again and is committed once `start` has seen that it is over.
        """
        while not self._stop.is_set():
            check()
            try:
                create_topics(self._kafka)
                self._session(start, check)
            except (KafkaError, Transient, OSError) as error:
                self._outage.failed(Transient(f"Kafka at {self._kafka.bootstrap}: {error}"))
                self._stop.wait(AGAIN_S)

    def _session(self, start: Start, check: Callable[[], None]) -> None:
        consumer = KafkaConsumer(
            **kafka_connection(self._kafka),
            group_id=self._group,
            client_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            bootstrap_timeout_ms=BOOTSTRAP_MS,
        )
        try:
            partitions = consumer.partitions_for_topic(self._topics.requests)
            if not partitions:
                raise Transient(f"no partitions of {self._topics.requests}")
            consumer.assign([TopicPartition(self._topics.requests, number) for number in sorted(partitions)])
            if self._current is not None and self._current.run.done():
                self._current = None  # its request comes again, and is over at once
            while not self._stop.is_set():
                check()
                for partition, records in consumer.poll(timeout_ms=POLL_MS, max_records=1).items():
                    for record in records:
                        self._take(consumer, partition, record, start)
                self._outage.worked()
                self._finish(consumer)
        finally:
            consumer.close()

    def _take(self, consumer: Any, partition: TopicPartition, record: Any, start: Start) -> None:
        if self._current is not None:
            # A new connection forgot that the partition is paused.
            if (self._current.partition, self._current.offset) != (partition, record.offset):
                consumer.seek(partition, record.offset)
            consumer.pause(partition)
            return
        try:
            request = decode(TrainRequest, record.value or b"")
        except msgspec.MsgspecError as error:
            log.error("%s: offset %d is no request (%s): dead letter", record.topic, record.offset, error)
            self._bury(record, str(error))
            self._commit(consumer, partition, record.offset)
            return
        self._current = _Current(partition, record.offset, start(request))
        consumer.pause(partition)

    def _finish(self, consumer: Any) -> None:
        current = self._current
        if current is None or not current.run.done():
            return
        current.run.result()
        self._commit(consumer, current.partition, current.offset)
        self._current = None
        consumer.resume(*consumer.paused())

    def _commit(self, consumer: Any, partition: TopicPartition, offset: int) -> None:
        consumer.commit({partition: OffsetAndMetadata(offset + 1, "", -1)})

    def _bury(self, record: Any, error: str) -> None:
        letter = DeadLetter(
            reason="bad_request",
            error=error,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            value=record.value or b"",
            ts=int(time.time() * 1000),
        )
        self._send(self._topics.dead, encode(letter), f"{record.topic}:{record.partition}:{record.offset}")

    def publish(self, event: TrainEvent) -> None:
        """Returns when the broker has the event. Raises `Transient`."""
        self._send(self._topics.events, encode(event), event.run_id)

    def _send(self, topic: str, value: bytes, key: str) -> None:
        with self._lock:
            try:
                if self._producer is None:
                    self._producer = KafkaProducer(
                        **kafka_connection(self._kafka),
                        client_id=self._group,
                        acks="all",
                        enable_idempotence=self._kafka.idempotence,
                        bootstrap_timeout_ms=BOOTSTRAP_MS,
                        max_request_size=self._kafka.max_message_bytes,
                    )
                self._producer.send(topic, value, key=key.encode()).get(timeout=SEND_S)
            except (KafkaError, OSError) as error:
                self._close_producer()
                raise Transient(
                    f"Kafka at {self._kafka.bootstrap} did not take a record for {topic}: {error}"
                ) from None

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)

    def close(self) -> None:
        """Ends the producer's connection."""
        with self._lock:
            self._close_producer()
