"""When runs began and ended: all of `train.events`, read outside of any consumer group."""

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.errors import Transient
from streams.records import TrainEvent, decode
from streams.retry import QUIET_S
from streams.settings import KafkaSettings
from streams.tls import kafka_connection
from streams.topics import Topics

log = logging.getLogger(__name__)

FINAL = ("done", "failed", "rejected")


class RunSpan(msgspec.Struct):
    """A run by its events; epoch milliseconds. An event may be there twice, and a clock may have been put back."""

    first_ms: int
    """Of the first event."""
    last_ms: int
    """Of the final event once it is there; what comes after it is a repeat."""
    ended: bool = False


class RunHistory:
    """The runs that have left events."""

    def __init__(self, kafka: KafkaSettings, topics: Topics) -> None:
        self._kafka = kafka
        self._topic = topics.events
        self._consumer: AIOKafkaConsumer | None = None
        self._runs: dict[str, RunSpan] = {}

    async def read(self) -> Mapping[str, RunSpan]:
        """By run id, with all events up to now. Raises `Transient`."""
        try:
            # A consumer whose connection was cut may wait for ever; a new one does not. TimeoutError is an OSError.
            async with asyncio.timeout(QUIET_S) as patience:
                await self._read(lambda: patience.reschedule(asyncio.get_running_loop().time() + QUIET_S))
        except (KafkaError, OSError) as error:
            await self.close()
            raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} ({error!r})") from None
        return self._runs

    async def _read(self, progress: Callable[[], None]) -> None:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(**kafka_connection(self._kafka), enable_auto_commit=False)
            self._consumer = consumer
            await consumer.start()
            tp = TopicPartition(self._topic, 0)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
        [tp] = self._consumer.assignment()
        while True:
            batches = await self._consumer.getmany(tp, timeout_ms=1000)
            for message in batches.get(tp, []):
                self._take(message.value or b"")
            if batches:
                progress()
                continue
            high = self._consumer.highwater(tp)
            if high is not None and await self._consumer.position(tp) >= high:
                return

    async def close(self) -> None:
        """Ends the consumer."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                await asyncio.wait_for(consumer.stop(), QUIET_S)
            except TimeoutError:
                log.warning("%s: the consumer did not end in %g s", self._topic, QUIET_S)

    def _take(self, value: bytes) -> None:
        try:
            event = decode(TrainEvent, value)
        except msgspec.MsgspecError as error:
            log.warning("%s: an event that cannot be read is passed over: %s", self._topic, error)
            return
        run = self._runs.setdefault(event.run_id, RunSpan(event.ts, event.ts))
        if run.ended:
            return
        run.first_ms = min(run.first_ms, event.ts)
        run.last_ms = event.ts if event.phase in FINAL else max(run.last_ms, event.ts)
        run.ended = event.phase in FINAL
