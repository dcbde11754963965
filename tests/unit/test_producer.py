"""Our producer: it returns when the broker has the record, and its errors say what to do."""

import asyncio
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

from streams import producer as module
from streams.errors import Fatal, InvalidRecord, Transient
from streams.producer import Producer
from streams.records import CuratedOutcome
from streams.settings import KafkaSettings

RECORD = CuratedOutcome(id="a", outcome="admitted", ts=1)


class Inner:
    """Stands for aiokafka's: `send` hands over, `send_and_wait` waits for the broker's word."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.word: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent: list[tuple[str, bytes, bytes]] = []

    async def start(self) -> None:
        """Reachable."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def send(self, topic: str, value: bytes, key: bytes, headers: object) -> "asyncio.Future[None]":
        self.sent.append((topic, value, key))
        return self.word

    async def send_and_wait(self, topic: str, value: bytes, key: bytes, headers: object) -> None:
        await (await self.send(topic, value, key, headers))


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> list[Inner]:
    made: list[Inner] = []

    def make(**options: Any) -> Inner:
        made.append(Inner(**options))
        return made[-1]

    monkeypatch.setattr(module, "AIOKafkaProducer", make)
    return made


async def test_a_send_returns_when_the_broker_has_it(inner: list[Inner]) -> None:
    async with Producer(KafkaSettings()) as producer:
        sending = asyncio.ensure_future(producer.send("prompts.curated", RECORD, key="a"))
        await asyncio.sleep(0.05)
        assert inner[0].sent
        assert not sending.done(), "handed over is not written"
        inner[0].word.set_result(None)
        await asyncio.wait_for(sending, 1)


async def test_it_asks_for_all_replicas_and_is_idempotent(inner: list[Inner]) -> None:
    async with Producer(KafkaSettings(max_message_bytes=12_345)):
        assert inner[0].options["acks"] == "all"
        assert inner[0].options["enable_idempotence"] is True
        assert inner[0].options["max_request_size"] == 12_345


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (KafkaTimeoutError(), Transient),
        (KafkaConnectionError(), Transient),
        (MessageSizeTooLargeError(), InvalidRecord),
        (TopicAuthorizationFailedError(), Fatal),
        (ProducerFenced(), Fatal),
    ],
)
async def test_errors_are_named_by_what_to_do(inner: list[Inner], error: Exception, means: type[Exception]) -> None:
    async with Producer(KafkaSettings()) as producer:
        inner[0].word.set_exception(error)
        with pytest.raises(means):
            await producer.send("prompts.curated", RECORD, key="a")
