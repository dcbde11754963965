"""Keeps a worker's gauges up to date, and tells in Redis what is degraded and since when."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from redis.asyncio import Redis

from agents.rules.lag import LagTrend
from streams.buffer.base import Buffer, BufferName
from streams.errors import HaypileError, Transient
from streams.health import HealthStore, ProcessHealth, process_name
from streams.lag import LogEnds
from streams.metrics import Metrics
from streams.settings import Settings
from streams.vllm import VllmPool

OBSERVE_S = 5.0
"""How often."""
REACH_S = 5.0
"""Of one look at a server: reports must not become rare when one hangs."""


class Observer:
    """Looks every few seconds until it is told to stop; never raises for what it looks at.

    `judge` is asked whether it answers, the circuits of all `pools` are looked at; `taken` gives the next offset of
    each partition that the worker takes from.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        client: Redis,
        buffers: Mapping[BufferName, Buffer],
        judge: VllmPool,
        pools: Sequence[VllmPool],
        taken: Callable[[], Mapping[tuple[str, int], int]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = metrics.health
        self._store = HealthStore(client, settings.redis.namespace)
        self._buffers = buffers
        self._judge = judge
        self._pools = pools
        self._taken = taken
        self._ends = LogEnds(settings.kafka)
        self._trends: dict[str, LagTrend] = {}
        self._started = time.time()
        self._name = process_name()

    async def run(self, stopped_within: Callable[[float], Awaitable[bool]]) -> None:
        """Looks until `stopped_within(seconds)` is true; then takes the process's entry away."""
        try:
            await self._quietly(self._store.forget_old(time.time()))
            while True:
                await self._look()
                if await stopped_within(OBSERVE_S):
                    return
        finally:
            await self._ends.close()
            await self._quietly(self._store.remove(self._name))

    async def _look(self) -> None:
        await asyncio.gather(self._redis(), self._vllm(), self._lag())
        report = ProcessHealth(
            process=self._name,
            agents=list(self._settings.worker.agents),
            started=self._started,
            at=time.time(),
            degraded=self._health.degraded,
        )
        await self._quietly(self._store.write(report))

    async def _redis(self) -> None:
        try:
            for name, buffer in self._buffers.items():
                await self._show(name, buffer)
        except HaypileError as error:
            self._is("redis", "redis unreachable", str(error))
        else:
            self._is("redis", "redis unreachable", None)

    async def _vllm(self) -> None:
        errors = await asyncio.gather(*(self._error_of(url) for url in self._judge.urls))
        self._is("judge", "judge unreachable", "; ".join(filter(None, errors)) if all(errors) else None)
        circuits = {url: seconds for pool in self._pools for url, seconds in pool.open_for_s().items()}
        detail = "its requests failed; it is probed every few seconds and the others take over"
        self._health.only("circuit open", [(f"circuit open: {url}", detail, s) for url, s in circuits.items()])

    async def _error_of(self, url: str) -> str | None:
        try:
            async with asyncio.timeout(REACH_S):
                await self._judge.models(url)
        except HaypileError as error:
            return str(error)
        except TimeoutError:
            return f"vLLM at {url} did not answer in {REACH_S:g} s"
        return None

    async def _lag(self) -> None:
        taken = dict(self._taken())
        if not taken:
            self._health.only("lag grows", [])
            return
        try:
            lag = await self._ends.lag(taken)
        except Transient as error:
            self._is("kafka", "kafka unreachable", str(error))
            return
        self._is("kafka", "kafka unreachable", None)
        now, growing = time.monotonic(), []
        for topic, count in lag.items():
            self._metrics.lag.labels(topic).set(count)
            trend = self._trends.setdefault(topic, LagTrend(self._settings.worker.window))
            trend.add(now, count)
            for_s = trend.growing_for_s(now)
            if for_s is not None:
                growing.append((f"lag grows: {topic}", f"{count} records are not taken yet", for_s))
        self._health.only("lag grows", growing)

    def _is(self, dependency: str, what: str, error: str | None) -> None:
        self._metrics.dependency_up.labels(dependency).set(error is None)
        if error is None:
            self._health.well(what)
        else:
            self._health.bad(what, error)

    @staticmethod
    async def _quietly(write: Awaitable[None]) -> None:
        try:
            await write
        except HaypileError:
            pass  # Redis is away: that is known, and told with the next report

    async def _show(self, name: BufferName, buffer: Buffer) -> None:
        stats = await buffer.stats()
        self._metrics.buffer_members.labels(name).set(stats.size)
        self._metrics.buffer_capacity.labels(name).set(stats.capacity)
        if stats.threshold is not None:
            self._metrics.buffer_threshold.labels(name).set(stats.threshold)
        if name == "main":
            self._metrics.buffer_answered.set(stats.answered)
            for category, count in stats.categories.items():
                self._metrics.buffer_category.labels(category).set(count)
