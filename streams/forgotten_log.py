"""`prompts.forgotten`, read from its beginning and then followed, outside of any consumer group.

Whoever decides by the list refreshes it first. In between, workers look every `REFRESH_S`; that nobody acts by an older
list in the meantime is the buffers' part (`streams.buffer.generations`: `fence`).
"""

import asyncio
import logging

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.errors import Fatal, Transient
from streams.forgotten import ForgottenList
from streams.records import Forgotten, decode
from streams.retry import QUIET_S
from streams.settings import KafkaSettings
from streams.tls import kafka_connection
from streams.topics import topic_names

log = logging.getLogger(__name__)

REFRESH_S = 2.0
"""How often a process looks by itself."""
FETCH_MS = 200
"""An idle fetch of this consumer is answered after this: so long a refresh takes at most."""
POLL_MS = 20


class ForgottenLog:
    """The list as of the last `refresh`. Close it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._topic = topic_names(kafka).forgotten
        self._consumer: AIOKafkaConsumer | None = None
        self._reading = asyncio.Lock()
        self.known = ForgottenList.of(kafka)

    async def refresh(self) -> ForgottenList:
        """The list with every record that was in the topic when this was called.

        Raises `Transient` (Kafka), `Fatal` (a record made with another key, or unreadable: it would not be honoured).
        """
        async with self._reading:
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._read()
            except Fatal:
                await self._close()  # so that the next call meets the record again
                raise
            except (KafkaError, OSError) as error:  # TimeoutError is an OSError
                await self._close()
                raise Transient(f"Kafka at {self._kafka.bootstrap}: cannot read {self._topic} ({error!r})") from None
            return self.known

    async def _read(self) -> None:
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
                self._take(message.value, message.offset)
            high = self._consumer.highwater(tp)
            if batches or high is None or self._consumer.last_poll_timestamp(tp) == heard:
                continue
            if await self._consumer.position(tp) >= max(end, high):
                return

    def _take(self, value: bytes | None, offset: int) -> None:
        if not value:
            return
        try:
            self.known.take(decode(Forgotten, value), offset)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Fatal(f"{self._topic}: offset {offset} cannot be read ({error}); another version wrote it?") from None

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
