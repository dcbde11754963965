"""What is degraded since when: a fact from the process that noticed it, not from the command that asks."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, start_http_server

from agents.rules.dead_letter_limit import LEAST, DeadLetterLimit
from agents.rules.lag import SPAN_S, LagTrend
from deploy.degraded import degradations, from_metrics
from deploy.local.processes import free_port
from deploy.observer import Observer
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.errors import Transient
from streams.health import KEEP_S, SILENT_S, STALE_S, Degraded, Health, HealthStore, ProcessHealth
from streams.lag import LogEnds
from streams.metrics import Metrics
from streams.redis_client import connect
from streams.retry import OutageLog
from streams.settings import RedisSettings, Settings
from streams.vllm import VllmPool
from tests.support.fake_vllm import FakeVllm


class Ends(LogEnds):
    """A broker that is there."""

    async def lag(self, taken: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        return {}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made() -> tuple[Health, Clock, Metrics]:
    clock, metrics = Clock(), Metrics(CollectorRegistry())
    return Health(metrics.degraded_since, clock), clock, metrics


def since(metrics: Metrics, what: str) -> float | None:
    return metrics.registry.get_sample_value("haypile_degraded_since_seconds", {"what": what})


def test_the_first_failure_sets_the_beginning_and_the_end_takes_it_away() -> None:
    health, clock, metrics = made()
    outage = OutageLog("score", clock, health)
    outage.failed(Transient("refused"))
    clock.now += 500
    outage.failed(Transient("reset"))
    [entry] = health.degraded
    assert (entry.what, entry.since, entry.detail) == ("score waits", 1000.0, "reset")
    assert since(metrics, "score waits") == 1000.0
    outage.worked()
    assert health.degraded == []
    assert since(metrics, "score waits") is None
    clock.now += 1
    outage.failed(Transient("again"))
    assert health.degraded[0].since == 1501.0


def test_what_nobody_complains_about_any_more_is_over() -> None:
    health, clock, metrics = made()
    health.bad("score waits", "vLLM")
    for _ in range(5):
        clock.now += STALE_S - 1
        health.bad("score waits", "vLLM")
    assert health.degraded[0].since == 1000.0
    clock.now += STALE_S + 1
    assert health.degraded == []
    assert since(metrics, "score waits") is None


def test_a_group_holds_exactly_what_is_bad_now() -> None:
    health, clock, _ = made()
    health.bad("other", "")
    health.only("circuit", [("circuit a", "x", 20), ("circuit b", "x", 0)])
    clock.now += 7
    health.only("circuit", [("circuit a", "x", 27)])
    assert [(entry.what, entry.since) for entry in health.degraded] == [("circuit a", 980.0), ("other", 1000.0)]


def test_a_lag_grows_when_it_is_above_the_window_and_above_what_it_was() -> None:
    trend = LagTrend(least=256)
    for step in range(20):
        trend.add(step * 5.0, 100 + step)
    assert trend.growing_for_s(95.0) is None, "a window of records is no backlog"
    trend = LagTrend(least=256)
    for step in range(20):  # a burst that is worked off
        trend.add(step * 5.0, max(0, 5000 - 400 * step))
        assert trend.growing_for_s(step * 5.0) is None
    trend = LagTrend(least=256)
    for step in range(40):  # grows, on average: commits come in lumps
        trend.add(step * 5.0, 300 + 50 * step + (100 if step % 2 else 0))
    assert trend.growing_for_s(195.0) == 195.0, "since the first sample"
    for step in range(40, 50):
        trend.add(step * 5.0, 300)
    assert trend.growing_for_s(250.0) is None
    assert SPAN_S == 30


def test_half_of_what_is_allowed_is_near_the_limit() -> None:
    limit = DeadLetterLimit(0.5)
    for i in range(LEAST):
        limit.count(i % 10 < 2)
    assert not limit.near
    for i in range(LEAST):
        limit.count(i % 10 < 4)
    assert limit.near
    assert not limit.exceeded


def report(
    process: str, at: float, *degraded: Degraded, agents: str = "ingest,score,curate", started: float = 0.0
) -> ProcessHealth:
    return ProcessHealth(process=process, agents=agents.split(","), started=started, at=at, degraded=list(degraded))


def test_status_takes_the_earliest_of_several_processes_and_the_oldest_first() -> None:
    now = 10_000.0
    first = report("a:1", now, Degraded(what="score waits", since=9000, detail="x"))
    second = report(
        "b:2",
        now - 3,
        Degraded(what="score waits", since=8000, detail="y"),
        Degraded(what="lag grows", since=8500, detail=""),
    )
    lines = degradations([first, second], now)
    assert [(line.what, line.since) for line in lines] == [("score waits", 8000), ("lag grows", 8500)]
    assert lines[0].processes == ["a:1", "b:2"]
    assert degradations([report("a:1", now)], now) == []


def test_status_names_processes_that_fell_silent_and_hops_that_nobody_runs() -> None:
    now = 10_000.0
    gone = report("a:1", now - SILENT_S - 1, Degraded(what="score waits", since=9000, detail="x"))
    lines = degradations([gone], now)
    assert {line.what: line.since for line in lines} == {
        "a:1 is silent": gone.at,
        "no worker runs ingest": gone.at,
        "no worker runs score": gone.at,
        "no worker runs curate": gone.at,
    }
    assert degradations([gone, report("a:2", now, started=gone.at + 1)], now) == [], "it was replaced"
    assert [line.what for line in degradations([gone, report("b:1", now)], now)] == ["a:1 is silent"]
    assert [line.since for line in degradations([], now)] == [None, None, None]


async def test_reports_are_kept_renewed_taken_away_and_forgotten(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    store = HealthStore(client, namespace)
    entry = report("a:1", 1.0, Degraded(what="x", since=2.0, detail="é"))
    await store.write(entry)
    await store.write(report("b:1", 5.0))
    await client.hset(f"{{{namespace}}}:health", "c:1", b"of another version")
    assert sorted(await store.read(), key=lambda r: r.process) == [entry, report("b:1", 5.0)]
    await store.remove("b:1")
    assert await store.read() == [entry]
    await store.forget_old(KEEP_S)
    assert await store.read() == [entry]
    await store.forget_old(KEEP_S + 2)
    assert await store.read() == []
    await client.aclose()


@pytest.fixture
async def vllm() -> AsyncIterator[tuple[FakeVllm, str]]:
    fake = FakeVllm()
    async with TestServer(fake.app) as server:
        yield fake, str(server.make_url("")).rstrip("/")


async def test_the_observer_tells_of_judge_and_circuits_and_leaves_no_entry_behind(
    redis_url: str, namespace: str, vllm: tuple[FakeVllm, str]
) -> None:
    fake, url = vllm
    dead = f"http://127.0.0.1:{free_port()}"
    settings = Settings.model_validate({"redis": {"url": redis_url, "namespace": namespace}})
    client, metrics = connect(settings.redis), Metrics(CollectorRegistry())
    store = HealthStore(client, namespace)
    stop = asyncio.Event()

    async def stopped_within(seconds: float) -> bool:
        try:
            await asyncio.wait_for(stop.wait(), 0.05)
        except TimeoutError:
            return False
        return True

    async def told() -> dict[str, float]:
        await asyncio.sleep(0.5)
        [entry] = await store.read()
        return {line.what: line.since for line in entry.degraded}

    async with VllmPool([dead]) as judge, VllmPool([url]) as teacher:
        observer = Observer(
            settings,
            metrics,
            client=client,
            buffers={"main": MemoryBuffer(BufferRules(10), time.time)},
            pools={"judge": judge, "teacher": teacher},
            taken=dict,
            folders={},
            ends=Ends(settings.kafka),
        )
        started = time.time()
        task = asyncio.create_task(observer.run(stopped_within))
        first = await told()
        assert first.keys() == {"judge unreachable"}
        assert started <= first["judge unreachable"] <= time.time()
        fake.fault("500", 3)
        for _ in range(3):
            with pytest.raises(Transient):
                await teacher.completions(["a"], model="judge")
        opened = time.time()
        second = await told()
        assert second.keys() == {"judge unreachable", f"circuit open: {url}"}
        assert second["judge unreachable"] == first["judge unreachable"], "since the beginning"
        assert opened - 1 < second[f"circuit open: {url}"] < opened + 0.2
        await asyncio.sleep(0.2)
        await teacher.completions(["a"], model="judge")  # the probe
        assert (await told()).keys() == {"judge unreachable"}
        stop.set()
        await asyncio.wait_for(task, 5)
        assert await store.read() == []
    await client.aclose()


def test_without_redis_the_metrics_of_the_worker_on_this_machine_tell() -> None:
    metrics, port = Metrics(CollectorRegistry()), free_port()
    metrics.health.bad("redis unreachable", "x", for_s=100)
    server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
    try:
        [line] = from_metrics(port)
        assert line.what == "redis unreachable"
        assert line.since == pytest.approx(time.time() - 100, abs=5)
    finally:
        server.shutdown()
        thread.join()
    assert from_metrics(port) == []
