"""The ordered-ack window: what is acked, when, and in which order."""

import asyncio
import random

import pytest

from streams.window import OrderedWindow


class Harness:
    """Records acks; handlers wait for `release(n)`."""

    def __init__(self, limit: int) -> None:
        self.acked: list[tuple[int, int]] = []
        self.failures: list[BaseException] = []
        self.gates: dict[tuple[int, int], asyncio.Event] = {}
        self.window: OrderedWindow[tuple[int, int]] = OrderedWindow(limit, self.ack, self.failures.append)

    async def ack(self, event: tuple[int, int]) -> None:
        await asyncio.sleep(0)
        self.acked.append(event)

    async def handle(self, event: tuple[int, int]) -> None:
        await self.gates.setdefault(event, asyncio.Event()).wait()

    async def submit(self, *event: int) -> bool:
        return await self.window.submit(event[0], (event[0], event[1]), self.handle)

    def release(self, *event: int) -> None:
        self.gates.setdefault((event[0], event[1]), asyncio.Event()).set()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_later_event_is_not_acked_before_an_earlier_one() -> None:
    h = Harness(limit=10)
    for offset in range(3):
        await h.submit(0, offset)
    h.release(0, 2)
    h.release(0, 1)
    await settle()
    assert h.acked == []
    h.release(0, 0)
    await settle()
    assert h.acked == [(0, 0), (0, 1), (0, 2)]


async def test_partitions_do_not_wait_for_each_other() -> None:
    h = Harness(limit=10)
    await h.submit(0, 0)
    await h.submit(1, 0)
    h.release(1, 0)
    await settle()
    assert h.acked == [(1, 0)]


async def test_a_full_window_stops_consumption_also_when_only_the_head_is_slow() -> None:
    h = Harness(limit=3)
    for offset in range(3):
        await h.submit(0, offset)
        if offset:
            h.release(0, offset)
    await settle()
    waiting = asyncio.create_task(h.submit(0, 3))
    await settle()
    assert not waiting.done(), "events done behind a slow head still count: memory is bounded"
    h.release(0, 0)
    assert await asyncio.wait_for(waiting, 1)
    assert h.acked == [(0, 0), (0, 1), (0, 2)]


async def test_drain_waits_for_what_is_in_progress() -> None:
    h = Harness(limit=10)
    await h.submit(0, 0)
    drained = asyncio.create_task(h.window.drain(5))
    await settle()
    assert not drained.done()
    h.release(0, 0)
    assert await drained == 0
    assert h.acked == [(0, 0)]


async def test_drain_abandons_after_the_deadline_and_never_acks_the_abandoned() -> None:
    h = Harness(limit=2)
    await h.submit(0, 0)
    await h.submit(0, 1)
    h.release(0, 1)
    waiting = asyncio.create_task(h.submit(0, 2))
    await settle()
    assert await h.window.drain(0.01) == 2
    assert await waiting is False, "an event of the assignment that has ended is dropped"
    h.release(0, 0)
    await settle()
    assert h.acked == []
    for offset in (0, 1):  # the next assignment has all the room, and a redelivery is handled like new
        assert await h.submit(0, offset)
        h.release(0, offset)
    await settle()
    assert h.acked == [(0, 0), (0, 1)]
    assert h.window.in_flight == 0


async def test_a_closed_window_takes_nothing() -> None:
    h = Harness(limit=2)
    await h.window.drain(0.01, close=True)
    assert await h.submit(0, 0) is False


async def test_a_handler_that_raises_is_reported_and_blocks_its_partition() -> None:
    h = Harness(limit=5)

    async def broken(event: tuple[int, int]) -> None:
        raise RuntimeError("boom")

    await h.window.submit(0, (0, 0), broken)
    await h.submit(0, 1)
    h.release(0, 1)
    await settle()
    assert [str(f) for f in h.failures] == ["boom"]
    assert h.acked == []


@pytest.mark.parametrize("seed", range(20))
async def test_any_interleaving_acks_every_partition_in_order(seed: int) -> None:
    rng = random.Random(seed)
    acked: list[tuple[int, int]] = []
    running = most = 0

    async def ack(event: tuple[int, int]) -> None:
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        acked.append(event)

    async def handle(event: tuple[int, int]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        running -= 1

    failures: list[BaseException] = []
    window: OrderedWindow[tuple[int, int]] = OrderedWindow(7, ack, failures.append)
    sent: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _ in range(300):
        partition = rng.randrange(3)
        sent[partition].append(len(sent[partition]))
        await window.submit(partition, (partition, sent[partition][-1]), handle)
    assert await window.drain(5) == 0
    assert failures == []
    assert most <= 7
    for partition, offsets in sent.items():
        assert [o for p, o in acked if p == partition] == offsets
