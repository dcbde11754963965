"""Keeps a worker's gauges up to date, and tells in Redis what is degraded and since when."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from prometheus_client import Gauge
from redis.asyncio import Redis

from agents.rules.lag import LagTrend
from streams.buffer.base import Buffer, BufferName, BufferStats
from streams.errors import HaypileError, Transient
from streams.health import HealthStore, ProcessHealth, process_name
from streams.lag import LogEnds
from streams.metrics import Metrics
from streams.redis_client import translate
from streams.settings import Settings
from streams.vllm import VllmPool

OBSERVE_S = 5.0
"""How often."""
REACH_S = 5.0
"""Of one look at a server: reports must not become rare when one hangs."""


class Observer:
    """Looks every few seconds until it is told to stop; never raises for what it looks at.

    Each of `pools` (by what it is for: `judge`, `teacher`, `reward`) is asked whether it answers, and its circuits are
    looked at; `taken` gives the next offset of each partition that the worker takes from; `folders` are those that
    the worker writes to, by setting.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        client: Redis,
        buffers: Mapping[BufferName, Buffer],
        pools: Mapping[str, VllmPool],
        taken: Callable[[], Mapping[tuple[str, int], int]],
        folders: Mapping[str, Path],
        ends: LogEnds | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = metrics.health
        self._store = HealthStore(client, settings.redis.namespace)
        self._buffers = buffers
        self._client = client
        self._pools = pools
        self._taken = taken
        self._folders = folders
        self._ends = ends or LogEnds(settings.kafka)
        self._trends: dict[str, LagTrend] = {}
        self._shown: set[tuple[str, int]] = set()
        self._categories: set[str] = set()
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
        await asyncio.gather(self._redis(), self._vllm(), self._lag(), self._disk())
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
            await self._quietly(self._memory())
        except HaypileError as error:
            self._is("redis", "redis unreachable", str(error))
        else:
            self._is("redis", "redis unreachable", None)

    async def _memory(self) -> None:
        """A Redis that does not let us ask (INFO is not allowed to every user) leaves the metrics at 0."""
        with translate(self._client):
            memory = await self._client.info("memory")
        self._metrics.redis_memory.set(memory["used_memory"])
        self._metrics.redis_limit.set(memory.get("maxmemory") or memory.get("total_system_memory") or 0)

    async def _vllm(self) -> None:
        pools = dict(self._pools)
        await asyncio.gather(*(self._reach(name, pool) for name, pool in pools.items()))
        circuits = {url: seconds for pool in pools.values() for url, seconds in pool.open_for_s().items()}
        detail = "its requests failed; it is probed every few seconds and the others take over"
        self._health.only("circuit open", [(f"circuit open: {url}", detail, s) for url, s in circuits.items()])

    async def _reach(self, name: str, pool: VllmPool) -> None:
        """A pool is up while one of its servers answers: it takes over from the others."""
        errors = await asyncio.gather(*(self._error_of(pool, url) for url in pool.urls))
        self._is(name, f"{name} unreachable", "; ".join(filter(None, errors)) if all(errors) else None)

    @staticmethod
    async def _error_of(pool: VllmPool, url: str) -> str | None:
        try:
            async with asyncio.timeout(REACH_S):
                await pool.models(url)
        except HaypileError as error:
            return str(error)
        except TimeoutError:
            return f"vLLM at {url} did not answer in {REACH_S:g} s"
        return None

    async def _lag(self) -> None:
        taken = dict(self._taken())
        for place in self._shown - taken.keys():  # another worker's by now
            self._metrics.lag.remove(*place)
        self._shown &= taken.keys()
        try:
            lag = await self._ends.lag(taken)
        except Transient as error:
            self._is("kafka", "kafka unreachable", str(error))
            return
        self._is("kafka", "kafka unreachable", None)
        topics: Counter[str] = Counter()
        for place, count in lag.items():
            self._metrics.lag.labels(*place).set(count)
            topics[place[0]] += count
        self._shown |= lag.keys()
        now, growing = time.monotonic(), []
        for topic, count in topics.items():
            trend = self._trends.setdefault(topic, LagTrend(self._settings.worker.window))
            trend.add(now, count)
            for_s = trend.growing_for_s(now)
            if for_s is not None:
                growing.append((f"lag grows: {topic}", f"{count} records are not taken yet", for_s))
        self._health.only("lag grows", growing)

    async def _disk(self) -> None:
        await asyncio.to_thread(self._metrics.disk.look, self._folders)

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
            pass  # Redis is away or refuses: that is known, and told with the next report

    async def _show(self, name: BufferName, buffer: Buffer) -> None:
        stats, metrics = await buffer.stats(), self._metrics
        metrics.buffer_members.labels(name).set(stats.size)
        metrics.buffer_capacity.labels(name).set(stats.capacity)
        _set_or_remove(metrics.buffer_threshold, stats.threshold, name)
        _set_or_remove(metrics.buffer_difficulty, stats.highest_difficulty, name, "first")
        _set_or_remove(metrics.buffer_difficulty, stats.lowest_difficulty, name, "last")
        for member, at_ms in (("oldest", stats.oldest_admitted_at), ("newest", stats.newest_admitted_at)):
            _set_or_remove(metrics.buffer_admission, None if at_ms is None else at_ms / 1000, name, member)
        if name == "main":
            self._show_main(stats)

    def _show_main(self, stats: BufferStats) -> None:
        self._metrics.buffer_answered.set(stats.answered)
        self._categories |= stats.categories.keys()
        for category in self._categories:
            self._metrics.buffer_category.labels(category).set(stats.categories.get(category, 0))
        for number, count in enumerate(stats.histogram):
            self._metrics.buffer_histogram.labels(f"{1 + number / 2:.1f}").set(count)


def _set_or_remove(gauge: Gauge, value: float | None, *labels: str) -> None:
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
