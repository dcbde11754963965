"""Records for the flow through real workers, and what must have become of them."""

import asyncio
import json
import random
import time

from agents.curate import Curator
from agents.scored_log import Scored, read_scored
from streams.buffer.base import BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import BufferSettings, RedisSettings
from tests.support.stack import Topics, wait_for

CAPACITY = 200
RULES = BufferRules(CAPACITY, 1.0, None)


def prompts(count: int, seed: int) -> dict[str, bytes]:
    """Raw records by id."""
    rng = random.Random(seed)
    words = [f"w{rng.randrange(10**6)}" for _ in range(500)]
    return {
        f"p{seed}-{i}": json.dumps(
            {"id": f"p{seed}-{i}", "prompt": f"{i} " + " ".join(rng.choices(words, k=9))}
        ).encode()
        for i in range(count)
    }


def members(redis_url: str, namespace: str) -> set[str]:
    async def read() -> set[str]:
        client = connect(RedisSettings(url=redis_url))
        found = await RedisBuffer(client, namespace, "main", RULES).top(CAPACITY)
        await client.aclose()
        return {member.prompt.id for member in found}

    return asyncio.run(read())


def reference(topics: Topics) -> set[str]:
    """Members of the in-memory buffer that was fed with `prompts.scored`."""

    async def feed() -> set[str]:
        main, held_out = MemoryBuffer(RULES, time.time), MemoryBuffer(RULES, time.time)
        curator = Curator(BufferSettings(capacity=CAPACITY, near_duplicate=None), main, held_out, lambda: 0)
        records: list[Scored] = [read_scored(*row) for row in topics.read(topics.names.scored)]
        for record in records:
            await curator.apply([record], [])
        return {member.prompt.id for member in await main.top(CAPACITY)}

    return asyncio.run(feed())


def wait_accounted(topics: Topics, ids: set[str], dead: int, deadline_s: float = 90) -> None:
    def complete() -> bool:
        outcomes, letters = topics.accounted()
        return ids <= outcomes.keys() and len(letters) >= dead

    wait_for(f"an outcome for each of {len(ids)} records", complete, deadline_s, every_s=0.5)
