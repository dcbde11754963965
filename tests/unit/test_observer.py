"""A worker's gauges say what is there now: what has gone leaves no number behind."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from deploy.observer import Observer
from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.errors import Transient
from streams.lag import LogEnds
from streams.metrics import Metrics
from streams.redis_client import connect
from streams.settings import KafkaSettings, Settings
from tests.support.training import scored


class Ends(LogEnds):
    """Every partition ends at 10, as long as the broker can be reached."""

    away = False

    async def lag(self, taken: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        if self.away:
            raise Transient("no broker")
        return {place: 10 - offset for place, offset in taken.items()}


class Bench:
    def __init__(self, redis_url: str, namespace: str, folder: Path) -> None:
        settings = Settings.model_validate({"redis": {"url": redis_url, "namespace": namespace}})
        self.metrics = Metrics(CollectorRegistry())
        self.client = connect(settings.redis)
        self.buffer = MemoryBuffer(BufferRules(2), lambda: 1234.5)
        self.taken: dict[tuple[str, int], int] = {}
        self.ends = Ends(settings.kafka)
        self.observer = Observer(
            settings,
            self.metrics,
            client=self.client,
            buffers={"main": self.buffer},
            pools={},
            taken=lambda: self.taken,
            folders={"snapshots": folder / "not" / "made" / "yet"},
            ends=self.ends,
        )

    async def look(self) -> None:
        """One look."""

        async def stop(seconds: float) -> bool:
            return True

        await self.observer.run(stop)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def test_gauges_follow_what_they_show(redis_url: str, namespace: str, tmp_path: Path) -> None:
    async def body() -> None:
        bench = Bench(redis_url, namespace, tmp_path)
        bench.taken = {("raw", 0): 4, ("raw", 1): 10}
        await bench.look()
        assert bench.value("haypile_lag_records", topic="raw", partition="0") == 6
        assert bench.value("haypile_lag_records", topic="raw", partition="1") == 0
        assert bench.value("haypile_buffer_threshold", buffer="main") is None
        assert bench.value("haypile_buffer_difficulty", buffer="main", rank="first") is None
        assert bench.value("haypile_buffer_admission_timestamp_seconds", buffer="main", member="oldest") is None
        used, limit = bench.value("haypile_redis_memory_bytes"), bench.value("haypile_redis_memory_limit_bytes")
        assert used and limit and used < limit
        assert bench.value("haypile_disk_free_bytes", folder="snapshots")

        offers = [Offer(prompt=scored(f"p{n}", f"text {n}"), rank_key=float(n)) for n in range(2)]
        await bench.buffer.offer(offers, [])
        bench.taken = {("raw", 1): 10}  # the other partition went to another worker
        await bench.look()
        assert bench.value("haypile_lag_records", topic="raw", partition="0") is None
        assert bench.value("haypile_buffer_threshold", buffer="main") == 0
        assert bench.value("haypile_buffer_difficulty", buffer="main", rank="last") == 5
        assert bench.value("haypile_buffer_admission_timestamp_seconds", buffer="main", member="newest") == 1234.5
        assert bench.value("haypile_buffer_category_members", category="math") == 2
        assert bench.value("haypile_buffer_difficulty_members", difficulty="5.0") == 2

        await bench.buffer.clear()
        bench.taken = {}
        await bench.look()
        assert bench.value("haypile_lag_records", topic="raw", partition="1") is None
        assert bench.value("haypile_buffer_threshold", buffer="main") is None
        assert bench.value("haypile_buffer_category_members", category="math") == 0
        assert bench.value("haypile_buffer_difficulty_members", difficulty="5.0") == 0
        await bench.client.aclose()

    asyncio.run(body())


def test_a_worker_without_partitions_knows_too_that_kafka_is_away(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    async def body() -> None:
        bench = Bench(redis_url, namespace, tmp_path)
        for away in (False, True, False):
            bench.ends.away = away
            await bench.look()
            assert bench.value("haypile_dependency_up", dependency="kafka") == (not away)
        await bench.client.aclose()

    asyncio.run(body())


async def test_without_partitions_the_broker_is_asked_all_the_same() -> None:
    ends = LogEnds(KafkaSettings(bootstrap="127.0.0.1:1"))
    with pytest.raises(Transient, match=r"127\.0\.0\.1:1"):
        await ends.lag({})
    await ends.close()
