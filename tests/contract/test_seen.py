"""Exact repeats over a time window, in a real Redis."""

import asyncio

from agents.ingest import Seen
from streams.redis_client import connect
from streams.settings import RedisSettings


async def test_who_was_first_is_known_for_the_window_and_no_longer(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    try:
        seen = Seen(client, namespace, window_s=1)
        assert await asyncio.gather(*(seen.first("a" * 64, id) for id in ("one", "two", "one"))) == ["one"] * 3
        assert await seen.first("b" * 64, "two") == "two"
        await asyncio.sleep(1.1)
        assert await seen.first("a" * 64, "three") == "three"
    finally:
        await client.aclose()


async def test_the_window_starts_at_the_first_and_a_repeat_does_not_prolong_it(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    try:
        seen = Seen(client, namespace, window_s=1000)
        await seen.first("a" * 64, "one")
        key = f"{{{namespace}}}:seen:{'a' * 32}"
        await client.expire(key, 5)
        await seen.first("a" * 64, "two")
        left = await client.ttl(key)
        assert left <= 5
    finally:
        await client.aclose()
