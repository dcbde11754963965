"""How an agent hangs on Faust: one at a time, nothing acked by Faust, bytes, bounded, and drained when it loses its
partitions. A stand-in for Faust's stream acks like it does; with the real one see tests/integration."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from streams.app import Hops, Inbound, create_app
from streams.settings import Settings


class Stream:
    """Like Faust's: without `noack()` the event before is acked when the next one is asked for."""

    def __init__(self, count: int) -> None:
        self.acked: list[int] = []
        self.taken = 0
        self._auto = True
        self._count = count

    def noack(self) -> "Stream":
        self._auto = False
        return self

    async def events(self) -> AsyncIterator[Any]:
        for offset in range(self._count):
            self.taken += 1
            message = SimpleNamespace(
                topic="prompts.raw", partition=0, offset=offset, value=b"x", timestamp=1.0, headers=None
            )
            yield SimpleNamespace(message=message)
            if self._auto:
                self.acked.append(offset)

    async def ack(self, event: Any) -> None:
        self.acked.append(event.message.offset)


class Bench:
    """An agent whose records end when the test says so."""

    def __init__(self, count: int, limit: int, drain_s: float = 5.0) -> None:
        self.hops: Hops = create_app(Settings.model_validate({"worker": {"drain_s": drain_s}}))
        self.gates = [asyncio.Event() for _ in range(count)]
        self.failures: list[BaseException] = []
        self.hops.attach("ingest", "prompts.raw", limit, self._handle, self.failures.append)
        self.stream = Stream(count)
        self.agent = self.hops.app.agents["ingest"]
        self.task = asyncio.ensure_future(self.agent.fun(self.stream))

    async def _handle(self, record: Inbound) -> None:
        await self.gates[record.offset].wait()

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)


async def test_nothing_is_acked_before_it_is_done_and_then_in_order() -> None:
    bench = Bench(count=4, limit=10)
    await bench.settle()
    assert bench.stream.taken == 4
    assert bench.stream.acked == [], "Faust must not ack by itself"
    for offset in (2, 1):
        bench.gates[offset].set()
    await bench.settle()
    assert bench.stream.acked == []
    bench.gates[0].set()
    await bench.settle()
    assert bench.stream.acked == [0, 1, 2]
    assert bench.hops.taken == {("prompts.raw", 0): 4}


async def test_a_full_window_stops_the_taking_of_records() -> None:
    bench = Bench(count=50, limit=3)
    await bench.settle()
    assert bench.stream.taken == 4, "three are in progress, the next one waits for room"


def test_faust_is_set_up_so_that_it_neither_reorders_nor_decodes_nor_hoards() -> None:
    settings = Settings.model_validate({"worker": {"window": 300}})
    hops = create_app(settings)

    async def handle(record: Inbound) -> None:
        """Never called."""

    hops.attach("ingest", "prompts.raw", 300, handle, lambda error: None)
    agent = hops.app.agents["ingest"]
    assert agent.concurrency == 1, "with more, Faust commits past events in flight"
    assert hops.app.topic("x", value_serializer="raw").schema.value_serializer == "raw"
    assert agent.channel.schema.value_serializer == "raw", "Faust drops what it cannot decode"
    assert agent.channel.schema.key_serializer == "raw"
    conf = hops.app.conf
    assert conf.stream_buffer_maxsize <= 4 * settings.worker.window, "memory in an outage"
    assert conf.stream_wait_empty is False, "that wait has no bound"
    assert conf.consumer_auto_offset_reset == "earliest"
    assert conf.broker_max_poll_interval >= 86_400, "a client that does not poll leaves the group and stays away"
    assert conf.broker_rebalance_timeout > settings.worker.drain_s


async def test_a_rebalance_finishes_what_is_in_progress_and_commits_before_the_partitions_go() -> None:
    bench = Bench(count=3, limit=10)
    await bench.settle()
    story: list[str] = []
    bench.hops.on_revoked = lambda: story.append(f"revoked with {bench.stream.acked} acked")

    async def commit() -> None:
        story.append("committed")

    bench.hops.app = SimpleNamespace(consumer=SimpleNamespace(commit=commit))  # type: ignore[assignment]
    revoked = asyncio.ensure_future(bench.hops._revoked())
    await bench.settle()
    assert story == []
    for gate in bench.gates:
        gate.set()
    await asyncio.wait_for(revoked, 5)
    assert story == ["revoked with [0, 1, 2] acked", "committed"]
    assert bench.hops.taken == {}


async def test_all_hops_share_one_deadline_and_what_is_late_is_told() -> None:
    bench = Bench(count=2, limit=10, drain_s=0.3)
    bench.hops.attach("score", "prompts.accepted", 10, bench._handle, bench.failures.append)
    other = Stream(1)
    task = asyncio.ensure_future(bench.hops.app.agents["score"].fun(other))
    await bench.settle()
    abandoned: dict[str, int] = {}
    bench.hops.on_abandoned = abandoned.__setitem__
    loop = asyncio.get_running_loop()
    started = loop.time()
    await bench.hops._shutdown()
    assert loop.time() - started < 0.55, "not one deadline after the other"
    assert abandoned == {"ingest": 2, "score": 1}
    assert bench.stream.acked == other.acked == []
    await task
