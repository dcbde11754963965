"""Our own producer: idempotent, `acks=all`, and each send is awaited until the broker has it.

Faust's own `send` only logs a failure, and is several times slower.
"""

from types import TracebackType
from typing import Self

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

from streams.errors import Fatal, InvalidRecord, Transient
from streams.records import encode
from streams.settings import KafkaSettings
from streams.tls import kafka_connection

LINGER_MS = 5
"""Gathers the records of many tasks in one request; far under the judge's time."""


class Producer:
    """An async context manager around one `AIOKafkaProducer`."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        producer = AIOKafkaProducer(
            **kafka_connection(self._kafka),
            enable_idempotence=self._kafka.idempotence,
            acks="all",
            linger_ms=LINGER_MS,
            max_request_size=self._kafka.max_message_bytes,
            client_id=f"{self._kafka.group}-producer",
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise Transient(f"Kafka at {self._kafka.bootstrap} is not reachable ({error})") from None
        self._producer = producer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def send(
        self, topic: str, record: msgspec.Struct, key: str, headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        """Returns when every in-sync replica has the record.

        Raises `Transient` (broker away), `InvalidRecord` (`too_large`) or `Fatal` (not allowed, fenced).
        """
        # A lone surrogate cannot get here: the records were decoded from UTF-8.
        await self._send(topic, encode(record), key, headers or [])

    async def bury(self, topic: str, key: str) -> None:
        """A tombstone: compaction takes away what a compacted topic has under the key. Raises as `send` does."""
        await self._send(topic, None, key, [])

    async def _send(self, topic: str, value: bytes | None, key: str, headers: list[tuple[str, bytes]]) -> None:
        if self._producer is None:
            raise RuntimeError("Producer is used outside of its context")
        try:
            await self._producer.send_and_wait(topic, value, key=key.encode(), headers=headers)
        except MessageSizeTooLargeError as error:
            raise InvalidRecord("too_large", f"{error} (kafka.max_message_bytes)") from None
        except (
            ClusterAuthorizationFailedError,
            TopicAuthorizationFailedError,
            InvalidTopicError,
            ProducerFenced,
        ) as error:
            raise Fatal(f"Kafka refuses to take records for {topic}: {error!r}") from None
        except KafkaError as error:
            raise Transient(f"Kafka at {self._kafka.bootstrap} did not take a record for {topic} ({error!r})") from None
