"""Records into Kafka for the interface: within a time, with a word about each of them."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from streams.errors import HaypileError, Transient
from streams.metrics import HttpMetrics
from streams.producer import Producer
from streams.retry import OutageLog, patiently
from streams.settings import KafkaSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keyed:
    """A record with its key on the wire."""

    record: msgspec.Struct
    key: str
    headers: Sequence[tuple[str, bytes]] = ()


class Sender:
    """An async context manager. It opens at once; while Kafka is away, `send` says so and a task goes on trying."""

    def __init__(self, kafka: KafkaSettings, metrics: HttpMetrics) -> None:
        self._kafka = kafka
        self._metrics = metrics
        self._producer = Producer(kafka)
        self._outage = OutageLog("http", time.monotonic)
        self._ready = asyncio.Event()
        self.up = False
        """Whether the last use of Kafka worked."""
        self._opening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._opening = asyncio.create_task(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._producer.__aexit__(kind, error, trace)

    async def _open(self) -> None:
        await patiently(self._producer.__aenter__, self._failed)
        self._worked()
        self._ready.set()

    async def send(self, topic: str, records: Sequence[Keyed], timeout_s: float) -> list[bool]:
        """For each record whether every in-sync replica has it; False: that is not known, it may come yet.

        Raises `Transient` when nothing was sent, because Kafka was not there since the process began.
        """
        if not self._ready.is_set():
            raise Transient(f"Kafka at {self._kafka.bootstrap} is not reachable")
        tasks = [asyncio.create_task(self._producer.send(topic, k.record, k.key, list(k.headers))) for k in records]
        try:
            await asyncio.wait(tasks, timeout=timeout_s)
        finally:
            for task in tasks:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed:
            told = next((error for error in failed if isinstance(error, HaypileError)), None)
            self._failed(Transient(str(told or f"Kafka at {self._kafka.bootstrap} did not answer in {timeout_s:g} s")))
        else:
            self._worked()
        return [not isinstance(result, BaseException) for result in results]

    def _failed(self, error: Transient) -> None:
        self.up = False
        self._metrics.kafka_up.set(0)
        self._outage.failed(error)

    def _worked(self) -> None:
        self.up = True
        self._metrics.kafka_up.set(1)
        self._outage.worked()
