"""Records that kill the process: their attempts are counted outside of it, in Redis.

Counting every record would cost a round trip each. So only the first record of a partition after each assignment is
counted: after a kill, Kafka hands out the same offset first again. From the third time on, the records that may have
been in progress are handled one by one, each with a counter that is taken back when it is over; what the counter has
seen `worker.max_attempts` times without an end has ended the process that often: a dead letter, reason `poison`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from streams.app import Inbound
from streams.errors import HaypileError
from streams.redis_client import translate
from streams.retry import patiently

log = logging.getLogger(__name__)

SUSPICIOUS_STARTS = 3
"""Assignments that began at the same offset: one is usual, two is a rebalance or a restart."""
KEEP_S = 86_400
"""Counters that nobody took back are forgotten after a day."""


class Poison:
    """The counters of one hop. `limit` is the window: how many records after the first may have been in progress."""

    def __init__(self, client: Redis, namespace: str, hop: str, limit: int, max_attempts: int) -> None:
        self._client = client
        self._prefix = f"{{{namespace}}}:attempts:{hop}:"
        self._limit = limit
        self._max_attempts = max_attempts
        self._careful_until: dict[int, int] = {}
        self._starts: dict[int, asyncio.Future[None]] = {}
        self._alone = asyncio.Lock()

    def new_assignment(self) -> None:
        """The partitions were taken away: what comes next are first records again."""
        self._careful_until.clear()
        self._starts.clear()

    async def suspects(self, record: Inbound) -> bool:
        """Whether to handle the record alone and counted. Waits out an outage of Redis."""
        start = self._starts.get(record.partition)
        if start is None:
            start = asyncio.ensure_future(self._start(record))
            self._starts[record.partition] = start
        if not start.done():
            await asyncio.shield(start)
        return record.offset < self._careful_until.get(record.partition, 0)

    @asynccontextmanager
    async def alone(self, record: Inbound) -> AsyncIterator[bool]:
        """No other suspected record is handled meanwhile; yields False when the record has had its attempts.

        The counter stays only when the process ends inside: an error or a cancellation takes it back.
        """
        key = f"{self._prefix}try:{record.topic}:{record.partition}:{record.offset}"
        async with self._alone:
            attempts = await patiently(lambda: self._count(key))
            try:
                yield attempts <= self._max_attempts
            except BaseException:
                await self._take_back(key)
                raise
            await patiently(lambda: self._forget(key))

    async def _start(self, record: Inbound) -> None:
        key = f"{self._prefix}start:{record.topic}:{record.partition}:{record.offset}"
        if await patiently(lambda: self._count(key)) >= SUSPICIOUS_STARTS:
            self._careful_until[record.partition] = record.offset + self._limit

    async def _count(self, key: str) -> int:
        with translate(self._client):
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.incr(key)
                pipe.expire(key, KEEP_S)
                count, _ = await pipe.execute()
        return int(count)

    async def _take_back(self, key: str) -> None:
        try:
            with translate(self._client):
                await self._client.decr(key)
        except HaypileError as error:
            log.warning("one attempt too many is counted: %s", error)

    async def _forget(self, key: str) -> None:
        with translate(self._client):
            await self._client.delete(key)
