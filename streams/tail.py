"""A topic of one partition, read whole from its beginning and then followed, outside of any consumer group."""

import asyncio
import logging
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.errors import Fatal, Transient
from streams.retry import QUIET_S
from streams.settings import KafkaSettings
from streams.tls import kafka_connection

log = logging.getLogger(__name__)

FETCH_MS = 100
"""An idle fetch of this consumer is answered after this: so long a reading takes at most when nothing is new."""
POLL_MS = 20


class Tail:
    """`take(value, offset)` gets each record: once, but all again after an outage. Close it."""

    def __init__(self, kafka: KafkaSettings, topic: str, take: Callable[[bytes, int], None]) -> None:
        self._kafka = kafka
        self._topic = topic
        self._take = take
        self._consumer: AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Returns when every record that was in the topic at the call has been taken.

        Raises `Transient` (Kafka) and what `take` raises; a `Fatal` meets its record again with the next call.
        """
        async with self._reading:
            try:
                # A consumer whose connection was cut may wait for ever; a new one does not.
                async with asyncio.timeout(QUIET_S) as patience:
                    await self._read(lambda: patience.reschedule(asyncio.get_running_loop().time() + QUIET_S))
            except Fatal:
                await self._close()
                raise
            except (KafkaError, OSError) as error:  # TimeoutError is an OSError
                await self._close()
                raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} ({error!r})") from None

    async def _read(self, progress: Callable[[], None]) -> None:
        tp = TopicPartition(self._topic, 0)
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **kafka_connection(self._kafka), enable_auto_commit=False, fetch_max_wait_ms=FETCH_MS
            )
            self._consumer = consumer
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
        # The end that is told may be short by a batch (Tansu); what a fetch tells that is answered after this is not.
        heard = self._consumer.last_poll_timestamp(tp)
        end = (await self._consumer.end_offsets([tp]))[tp]
        while True:
            batches = await self._consumer.getmany(tp, timeout_ms=POLL_MS)
            for message in batches.get(tp, []):
                if message.value:
                    self._take(message.value, message.offset)
            if batches:
                progress()
                continue
            high = self._consumer.highwater(tp)
            if high is None or self._consumer.last_poll_timestamp(tp) == heard:
                continue
            if await self._consumer.position(tp) >= max(end, high):
                return

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                await asyncio.wait_for(consumer.stop(), QUIET_S)
            except TimeoutError:
                log.warning("%s: the consumer did not end in %g s", self._topic, QUIET_S)

    async def close(self) -> None:
        """Ends the consumer."""
        async with self._reading:
            await self._close()
