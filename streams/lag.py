"""How far the log is ahead of what a worker has taken: its own connection, so that nothing waits for it."""

import asyncio
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.errors import Transient
from streams.settings import KafkaSettings
from streams.tls import kafka_connection

PATIENCE_S = 8.0
"""Of one question, connecting included."""


class LogEnds:
    """Asks the broker for the ends of partitions. Joins no group."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._consumer: AIOKafkaConsumer | None = None

    async def lag(self, taken: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Records of each partition that are not taken yet; `taken` has the next offset of each.

        Partitions of which nothing was taken are not known here and not counted. Raises `Transient`, also when nothing
        was taken at all and the broker cannot be reached.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._consumer is None:
                    self._consumer = AIOKafkaConsumer(
                        **kafka_connection(self._kafka), enable_auto_commit=False, request_timeout_ms=5_000
                    )
                    await self._consumer.start()
                if not taken:  # of nothing no broker would be asked
                    await self._consumer.topics()
                    return {}
                ends = await self._consumer.end_offsets([TopicPartition(*place) for place in taken])
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise Transient(f"Kafka at {self._kafka.bootstrap}: no end of the log ({error!r})") from None
        return {place: max(0, ends[TopicPartition(*place)] - offset) for place, offset in taken.items()}

    async def close(self) -> None:
        """Ends the connection; the next question opens another."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
