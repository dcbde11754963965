"""When runs began and ended, by all of `train.events`."""

import logging
from collections.abc import Mapping

import msgspec

from streams.records import TrainEvent, decode
from streams.settings import KafkaSettings
from streams.tail import Tail
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
        self._topic = topics.events
        self._tail = Tail(kafka, topics.events, self._take)
        self._runs: dict[str, RunSpan] = {}

    async def read(self) -> Mapping[str, RunSpan]:
        """By run id, with all events up to now. Raises `Transient`."""
        await self._tail.read()
        return self._runs

    async def close(self) -> None:
        """Ends the consumer."""
        await self._tail.close()

    def _take(self, value: bytes, offset: int) -> None:
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
