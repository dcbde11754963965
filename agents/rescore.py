"""When the judge changes, the buffer goes through the new one in the background (see `streams.buffer.generations`).

Every worker that scores looks here every few seconds. Its own judge is new: it opens the next generation. Its judge is
the next one's, and nobody else holds the lease: it rates the members that are still on the list and puts them into
`prompts.scored` like any rated prompt, where `curate` takes them into the next generation. When the list is empty the
next generation becomes the active one. So the log has every rating that counts, and a rescoring that is killed goes on
where it was: what is not on the list any more is done, what is rated twice changes nothing. Its judge was replaced: the
process stops, because its ratings would go nowhere.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from agents.score import scored
from streams.buffer.base import BufferName
from streams.buffer.generations import GenerationMoved, Generations, GenerationState
from streams.errors import Fatal, InvalidRecord, Transient
from streams.forgotten import ForgottenList
from streams.judge import Judge
from streams.lease import Lease
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import CuratedOutcome, Member, accepted
from streams.retry import OutageLog
from streams.topics import Topics

log = logging.getLogger(__name__)

IDLE_S = 2.0
"""How often to look whether there is something to do: one round trip to Redis."""
CHUNK = 64
"""Members rated between two looks at the lease."""
AGAIN_S = 900.0
"""A member that was rated and is still on the list after this is rated again. Until then `curate` is only behind."""
LEASE_S = 60.0
"""Above the time that a chunk takes."""
NAMES: tuple[BufferName, BufferName] = ("main", "eval")


class Rescore:
    """Brings the buffers over to `judge`. `concurrency` bounds its requests: new arrivals go first."""

    def __init__(
        self,
        topics: Topics,
        *,
        judge: Judge,
        generations: Generations,
        lease: Lease,
        producer: Producer,
        metrics: Metrics,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        forgotten: ForgottenList | None = None,
    ) -> None:
        self._topics = topics
        self._judge = judge
        self._generations = generations
        self._lease = lease
        self._producer = producer
        self._metrics = metrics
        self._slots = asyncio.Semaphore(concurrency)
        self._clock = clock
        self._now_ms = now_ms
        self._forgotten = forgotten if forgotten is not None else ForgottenList()
        self._outage = OutageLog("rescore", clock)
        self._rated: dict[bytes, float] = {}
        self._rated_for: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop`; then gives the lease back. Raises only `Fatal`."""
        try:
            while not stop.is_set():
                try:
                    await self.once()
                    self._outage.worked()
                except Transient as error:
                    self._metrics.retries.labels("rescore").inc()
                    self._outage.failed(error)
                except GenerationMoved:
                    continue
                try:
                    await asyncio.wait_for(stop.wait(), IDLE_S)
                except TimeoutError:
                    pass
        finally:
            try:
                await self._lease.release()
            except Transient as error:
                log.warning("rescore: the lease runs out by itself: %s", error)

    async def once(self) -> GenerationState:
        """Does what there is to do; returns the state after it.

        Raises `Transient`, `GenerationMoved` (look again) and `Fatal` (this judge was replaced).
        """
        state = await self._generations.read()
        mine = self._judge.identity
        if mine not in (state.judge, state.next_judge) and state.judge is not None:
            begun = await self._generations.begin(mine)
            if begun == "retired":
                raise Fatal(
                    f"judge {mine} of these settings was replaced by {state.next_judge or state.judge}: bring this "
                    "process's settings up to date, or go back to its judge with `haypile rescore`"
                )
            state = await self._generations.read()
            log.info(
                "rescore: from judge %s to %s: %s, %d members",
                *(state.judge, mine, begun, state.total),
                extra={"event": "rescoring", "judge": state.judge, "next_judge": mine, "members": state.total},
            )
        await self._generations.sweep()
        if state.next_judge == mine and await self._lease.hold() is not None:
            await self._work(state)
            state = await self._generations.read()
        self._show(state)
        return state

    async def _work(self, state: GenerationState) -> None:
        if self._rated_for != state.next:
            self._rated, self._rated_for = {}, state.next
        left = 0
        for name in NAMES:
            keys = await self._generations.todo(name)
            left += len(keys)
            since = self._clock() - AGAIN_S
            fresh = [key for key in keys if self._rated.get(key, -float("inf")) < since]
            for start in range(0, len(fresh), CHUNK):
                if not await self._lease.renew():
                    return
                chunk = fresh[start : start + CHUNK]
                members = await self._generations.waiting(name, chunk)
                done = await asyncio.gather(*(self._one(name, m) for m in members), return_exceptions=True)
                for result in done:
                    if isinstance(result, BaseException):
                        raise result
                self._rated.update(dict.fromkeys(chunk, self._clock()))
                self._show(await self._generations.read())
        if left == 0 and await self._generations.switch():
            self._metrics.generation_switches.inc()
            judge = self._judge.identity
            log.info("rescore: the buffer is judge %s's now", judge, extra={"event": "rescored", "judge": judge})
            await self._generations.sweep()

    async def _one(self, name: BufferName, member: Member) -> None:
        prompt = member.prompt
        async with self._slots:
            try:
                rating = await self._judge.rate(prompt.messages)
            except InvalidRecord as error:
                gone = CuratedOutcome(
                    id=prompt.id,
                    outcome="unreadable_again",
                    detail=error.reason,
                    judge=self._judge.identity,
                    ts=self._now_ms(),
                )
                await self._producer.send(self._topics.curated, gone, key=prompt.id)
                await self._generations.skip(name, [prompt.id])
                self._metrics.rescored.labels("unreadable").inc()
                return
        if self._forgotten.prompt(prompt) is not None:  # it leaves the buffer, and with that the list
            return
        record = scored(accepted(prompt), rating, self._judge.identity)
        await self._producer.send(self._topics.scored, record, key=prompt.id)
        self._metrics.rescored.labels("rated").inc()

    def _show(self, state: GenerationState) -> None:
        self._metrics.rescore_members.labels("all").set(state.total)
        self._metrics.rescore_members.labels("left").set(state.left)
