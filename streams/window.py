"""The ordered-ack window: many records in progress, acknowledged strictly in order for each partition.

Faust commits past an event in flight as soon as a later one is acked (its issue #606). Here an event is acked only when
every earlier event of its partition is done, so that a commit can never pass one that is not. At most `limit` events
are in progress; a full window makes `submit` wait, which stops consumption: that is the backpressure.

On a rebalance or a stop, `drain` waits for what is in progress, up to a deadline, and then abandons the rest: their
tasks are cancelled and they are never acked, so that the broker delivers them again.

This module knows neither Kafka nor Faust: a key is anything that orders events, an event anything that `ack` takes.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from streams.cancel import end

E = TypeVar("E")
log = logging.getLogger(__name__)


class _Slot(Generic[E]):
    __slots__ = ("done", "event")

    def __init__(self, event: E) -> None:
        self.event = event
        self.done = False


class _Lane(Generic[E]):
    """The events of one key, oldest first."""

    __slots__ = ("acking", "slots")

    def __init__(self) -> None:
        self.slots: deque[_Slot[E]] = deque()
        self.acking = False


class OrderedWindow(Generic[E]):
    """At most `limit` events taken and not yet acked; `ack(event)` is called in the order of `submit` for each key.

    `on_failure` is called with the error when a handler or an ack raised: neither may (DESIGN: nothing may raise out of
    an agent's body), so that event stays unacked for ever and the owner has to stop the process.
    """

    def __init__(
        self,
        limit: int,
        ack: Callable[[E], Awaitable[object]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        if limit < 1:
            raise ValueError(f"window limit must be at least 1, not {limit}")
        self.limit = limit
        self._ack = ack
        self._on_failure = on_failure
        self._lanes: dict[Hashable, _Lane[E]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(limit)
        self._generation = 0
        self._draining = False
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Events taken and not yet acked (0..limit)."""
        return sum(len(lane.slots) for lane in self._lanes.values())

    async def submit(self, key: Hashable, event: E, handler: Callable[[E], Awaitable[None]]) -> bool:
        """Start `handler(event)` as soon as there is room.

        Returns False if the window is drained meanwhile: the event belongs to an assignment that has ended and is left
        for redelivery.
        """
        generation = self._generation
        if self._draining or self._closed:
            return False
        await self._free.acquire()
        if generation != self._generation:
            self._free.release()
            return False
        slot = _Slot(event)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.slots.append(slot)
        task = asyncio.ensure_future(self._run(lane, slot, handler))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return True

    async def drain(self, deadline_s: float, *, close: bool = False) -> int:
        """Wait for what is in progress, at most `deadline_s`; then abandon it. Returns how many were abandoned.

        With `close` nothing is taken any more (the process ends); without, the next assignment goes on.
        """
        self._generation += 1
        self._draining = True
        self._closed = self._closed or close
        try:
            late: set[asyncio.Task[None]] = set()
            if self._tasks:
                _, late = await asyncio.wait(set(self._tasks), timeout=deadline_s)
            await end(late)
            abandoned = self.in_flight
            self._lanes.clear()
            for _ in range(abandoned):
                self._free.release()
            return abandoned
        finally:
            self._draining = False

    async def _run(self, lane: _Lane[E], slot: _Slot[E], handler: Callable[[E], Awaitable[None]]) -> None:
        await handler(slot.event)
        slot.done = True
        if lane.acking:
            return  # the task that is acking this lane looks at its head again
        lane.acking = True
        try:
            while lane.slots and lane.slots[0].done:
                await self._ack(lane.slots[0].event)
                lane.slots.popleft()
                self._free.release()
        finally:
            lane.acking = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a handler raised; its event is not acked: %r", error)
            self._on_failure(error)
