"""What is degraded in a process, and since when: told by the process itself, kept in Redis for `haypile status`.

A process knows the first failure of an outage; a command that looks later does not. Each process writes what it knows
every few seconds; one that ends cleanly takes its entry away, and the entry of one that was killed says how long it has
been silent. While Redis is away the metric `haypile_degraded_since_seconds` still tells.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import Gauge
from redis.asyncio import Redis

from streams.records import decode, encode
from streams.redis_client import translate

SILENT_S = 30.0
"""Six reports that did not come."""
STALE_S = 600.0
"""What nobody has complained about for so long is over: whoever waited lost its partitions. Twice our longest time-out.
"""
KEEP_S = 86_400.0
"""The entry of a process that was killed is of use for a day."""


class Degraded(msgspec.Struct, kw_only=True):
    """Something that does not work as it should."""

    what: str
    since: float
    """Epoch seconds."""
    detail: str


class ProcessHealth(msgspec.Struct, kw_only=True):
    """What one process says about itself."""

    process: str
    """`host:pid`."""
    agents: list[str]
    started: float
    at: float
    """When this was written; epoch seconds, like all times here."""
    degraded: list[Degraded]


class Health:
    """What is degraded in this process. `gauge` has the label `what`."""

    def __init__(self, gauge: Gauge, clock: Callable[[], float] = time.time) -> None:
        self._gauge = gauge
        self._clock = clock
        self._bad: dict[str, Degraded] = {}
        self._heard: dict[str, float] = {}

    def bad(self, what: str, detail: str, for_s: float = 0.0) -> None:
        """`what` does not work, now or since `for_s` seconds. The first call of an outage sets its beginning.

        Call it again while it lasts: after `STALE_S` without a word it is over.
        """
        known = self._bad.get(what)
        self._heard[what] = self._clock()
        if known is not None:
            known.detail = detail
            return
        self._bad[what] = Degraded(what=what, since=self._clock() - for_s, detail=detail)
        self._gauge.labels(what).set(self._bad[what].since)

    def well(self, what: str) -> None:
        """`what` works (again)."""
        if self._bad.pop(what, None) is not None:
            self._gauge.remove(what)

    def only(self, prefix: str, bad: Iterable[tuple[str, str, float]]) -> None:
        """Of all that begins with `prefix`, exactly this (what, detail, for how many seconds) is bad now."""
        now_bad = list(bad)
        for what in [what for what in self._bad if what.startswith(prefix)]:
            if what not in {name for name, _, _ in now_bad}:
                self.well(what)
        for what, detail, for_s in now_bad:
            self.bad(what, detail, for_s)

    @property
    def degraded(self) -> list[Degraded]:
        """The oldest first."""
        for what in [what for what in self._bad if self._clock() - self._heard[what] > STALE_S]:
            self.well(what)
        return sorted(self._bad.values(), key=lambda entry: entry.since)


class HealthStore:
    """The reports of all processes: one Redis hash, one field a process."""

    def __init__(self, client: Redis, namespace: str) -> None:
        self._client = client
        self._key = f"{{{namespace}}}:health"

    async def write(self, report: ProcessHealth) -> None:
        """Raises `Transient`."""
        with translate(self._client):
            await self._client.hset(self._key, report.process, encode(report))

    async def remove(self, process: str) -> None:
        """The process ends cleanly. Raises `Transient`."""
        with translate(self._client):
            await self._client.hdel(self._key, process)

    async def read(self) -> list[ProcessHealth]:
        """All reports, also of processes that are silent by now. Raises `Transient`."""
        with translate(self._client):
            fields = await self._client.hgetall(self._key)
        found = []
        for value in fields.values():
            try:
                found.append(decode(ProcessHealth, value if isinstance(value, bytes) else value.encode()))
            except msgspec.MsgspecError:
                continue  # of another version
        return found

    async def forget_old(self, now: float) -> None:
        """Drops what nobody has renewed for a day. Raises `Transient`."""
        for report in await self.read():
            if now - report.at > KEEP_S:
                await self.remove(report.process)


def process_name() -> str:
    """`host:pid` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
