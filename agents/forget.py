"""What was forgotten leaves Redis: members of both buffers in both generations with all that belongs to them, outcomes
that wait to be published, and the memory of having seen their prompts.

The topic `prompts.forgotten` is the truth, and Redis notes up to which of its records it is rid of them (`MARK`). So a
Redis that comes back older, or empty and filled again, is swept again: every worker that curates looks.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from redis.asyncio import Redis

from agents.ingest import Seen
from streams.buffer.base import Buffer
from streams.buffer.generations import GenerationMoved
from streams.buffer.redis_generations import RedisGenerations
from streams.errors import Transient
from streams.forgotten import ForgottenList
from streams.forgotten_log import ForgottenLog
from streams.redis_client import translate

log = logging.getLogger(__name__)

MARK = "forgotten"
OUTBOX = 100_000
"""Evictions that wait to be published: usually none."""
AGAIN = 5
"""Times that a sweep begins again because the generations changed under it."""


@dataclass
class Swept:
    """What left Redis."""

    members: dict[str, int] = field(default_factory=lambda: {"main": 0, "eval": 0})
    outbox: int = 0
    seen: int = 0


class Sweeper:
    """Sweeps one Redis. Methods raise `Transient` and `Fatal` as buffers do."""

    def __init__(self, client: Redis, namespace: str, generations: RedisGenerations, seen: Seen) -> None:
        self._client = client
        self._mark = f"{{{namespace}}}:{MARK}"
        self._generations = generations
        self._seen = seen

    async def due(self, forgotten: ForgottenList) -> bool:
        """Whether something on the list may still be in Redis."""
        if not forgotten:
            return False
        with translate(self._client):
            mark = await self._client.get(self._mark)
        return mark is None or int(mark) != forgotten.upto

    async def sweep(self, forgotten: ForgottenList, seen: Iterable[tuple[str, str]] = ()) -> Swept:
        """Remove all that is on the list, and the given sightings (prompt_id, id) besides those of members.

        First the epoch ends: from here on nobody offers anything by an older list.
        """
        upto = forgotten.upto
        swept = Swept()
        await self._generations.fence()
        await self._generations.sweep()
        for attempt in range(AGAIN):
            try:
                sightings = await self._members(forgotten, swept)
                break
            except (GenerationMoved, Transient) as error:
                if attempt == AGAIN - 1:
                    raise Transient(f"the buffers could not be swept: {error}") from None
        sightings |= set(seen)
        gone = {id for _, id in sightings}
        for buffer in (self._generations.main, self._generations.held_out):
            evictions = [eviction for eviction in await buffer.outbox(OUTBOX) if eviction.id in gone]
            await buffer.outbox_done(evictions)
            swept.outbox += len(evictions)
        swept.seen += await self._seen.forget(sightings)
        with translate(self._client):
            await self._client.set(self._mark, upto)
        return swept

    async def count(self, forgotten: ForgottenList) -> dict[str, int]:
        """How many members of each buffer are on the list; of both generations, where there are two."""
        counts: dict[str, int] = {}
        for name, buffer in await self._buffers():
            counts[name] = counts.get(name, 0) + len(await _on(buffer, forgotten))
        return counts

    async def _members(self, forgotten: ForgottenList, swept: Swept) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for name, buffer in await self._buffers():
            here = await _on(buffer, forgotten)
            # Before the members go: they are how these keys are found.
            swept.seen += await self._seen.forget(here)
            swept.members[name] += await buffer.remove(id for _, id in here)
            found |= here
        return found

    async def _buffers(self) -> list[tuple[str, Buffer]]:
        generations = self._generations
        buffers: list[tuple[str, Buffer]] = [("main", generations.main), ("eval", generations.held_out)]
        if (await generations.read()).next is not None:
            buffers += [("main", generations.next_main), ("eval", generations.next_held_out)]
        return buffers


async def _on(buffer: Buffer, forgotten: ForgottenList) -> set[tuple[str, str]]:
    return {
        (member.prompt.prompt_id, member.prompt.id)
        async for chunk in buffer.iterate()
        for member in chunk
        if forgotten.prompt(member.prompt) is not None
    }


class Forget:
    """The worker's part: keeps the list up to date for the hops, and sweeps Redis when it is behind it."""

    def __init__(self, forgotten: ForgottenLog, sweeper: Sweeper | None) -> None:
        self._log = forgotten
        self._sweeper = sweeper

    async def once(self) -> Swept | None:
        """Look once; what was swept, if anything was to be. Raises `Transient` and `Fatal`."""
        known = await self._log.refresh()
        if self._sweeper is None or not await self._sweeper.due(known):
            return None
        swept = await self._sweeper.sweep(known)
        log.info("forgotten: %s members, %d sightings left Redis", swept.members, swept.seen)
        return swept
