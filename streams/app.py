"""The Faust app, and a hop's agent on the ordered-ack window."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import faust

from streams.consumer import Monitor, speed_up
from streams.settings import Settings
from streams.tls import faust_credentials
from streams.window import OrderedWindow

log = logging.getLogger(__name__)

LONGEST_OUTAGE_S = 7 * 86_400.0
"""A worker whose queues are full polls nothing. After this time without a poll the Kafka client leaves the group, and
does not come back (tried: records stay where they are although the judge answers again). Kafka's default is 5 minutes,
Faust's 17: an outage may be longer. A process that died is noticed by its heartbeats, after the session time-out.
"""


@dataclass(frozen=True)
class Inbound:
    """A record as it came: bytes, and where it stands."""

    topic: str
    partition: int
    offset: int
    value: bytes
    timestamp_ms: int
    """The broker's."""
    headers: tuple[tuple[str, bytes], ...]

    @property
    def position(self) -> str:
        """`topic:partition:offset`."""
        return f"{self.topic}:{self.partition}:{self.offset}"


class Hops:
    """A Faust app and the windows of its agents. `create_app` makes it."""

    def __init__(self, app: faust.App, drain_s: float) -> None:
        self.app = app
        self.windows: dict[str, OrderedWindow[Any]] = {}
        self.taken: dict[tuple[str, int], int] = {}
        """Topic and partition → the offset after the last record taken, since the last assignment."""
        self._drain_s = drain_s
        app.on_partitions_revoked.connect(self._revoked, weak=False)
        app.on_before_shutdown.connect(self._shutdown, weak=False)
        self.on_abandoned: Callable[[str, int], None] = lambda name, count: None
        self.on_revoked: Callable[[], None] = lambda: None

    def attach(
        self,
        name: str,
        topic: str,
        limit: int,
        handle: Callable[[Inbound], Awaitable[None]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """An agent `name` that gives every record of `topic` to `handle`, `limit` at once, acked in order."""
        channel = self.app.topic(topic, key_serializer="raw", value_serializer="raw")

        async def run(stream: Any) -> None:
            records = stream.noack()
            window: OrderedWindow[Any] = OrderedWindow(limit, records.ack, on_failure)
            self.windows[name] = window

            async def one(event: Any) -> None:
                await handle(_inbound(event.message))

            async for event in records.events():
                message = event.message
                self.taken[message.topic, message.partition] = message.offset + 1
                await window.submit(message.partition, event, one)

        self.app.agent(channel, name=name, concurrency=1)(run)

    async def _drain(self, *, close: bool) -> None:
        # All at once: one after the other they would take the time that is set once for each.
        counts = await asyncio.gather(*(w.drain(self._drain_s, close=close) for w in self.windows.values()))
        for name, abandoned in zip(self.windows, counts, strict=True):
            if abandoned:
                log.warning(
                    "%s: %d records were not done in %g s and are left for redelivery",
                    *(name, abandoned, self._drain_s),
                    extra={"event": "abandoned", "hop": name, "records": abandoned},
                )
                self.on_abandoned(name, abandoned)

    async def _revoked(self, *args: Any, **kwargs: Any) -> None:
        # Faust has stopped the flow and emptied the agents' queues. What the window holds is finished and committed
        # before the partitions go, or given up: Faust's own wait for this (`stream_wait_empty`) has no bound.
        await self._drain(close=False)
        self.taken.clear()
        self.on_revoked()
        await self.app.consumer.commit()

    async def _shutdown(self, *args: Any, **kwargs: Any) -> None:
        await self._drain(close=True)
        # Faust commits what is acked when its consumer stops, which comes after this.


def create_app(settings: Settings) -> Hops:
    """A Faust app without agents, tables and web server, for the consumer group of the settings."""
    session_s = settings.kafka.session_timeout_s
    app = faust.App(
        settings.kafka.group,
        env_prefix="HAYPILE_FAUST_",  # so that a stray BROKER_URL changes nothing
        broker=[f"kafka://{part.strip()}" for part in settings.kafka.bootstrap.split(",")],
        broker_credentials=faust_credentials(settings.kafka),
        autodiscover=False,
        Monitor=Monitor,
        cython_optimizations=True,
        web_enabled=False,
        store="memory://",
        datadir=Path(gettempdir()) / f"{settings.kafka.group}-faust",
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=False,
        # A full queue of one topic stops the fetching of all: a slow judge would hold up `curate` in the same worker.
        stream_buffer_maxsize=max(512, 2 * settings.worker.window),
        stream_recovery_delay=0.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=max(1.0, session_s / 10),
        broker_rebalance_timeout=session_s + settings.worker.drain_s,
        broker_max_poll_interval=LONGEST_OUTAGE_S,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
    )
    speed_up(app)
    return Hops(app, settings.worker.drain_s)


def _inbound(message: Any) -> Inbound:
    headers = message.headers or ()
    if isinstance(headers, dict):
        headers = tuple(headers.items())
    return Inbound(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        value=message.value or b"",
        timestamp_ms=int(message.timestamp * 1000),
        headers=tuple((str(key), bytes(value)) for key, value in headers),
    )
