"""The two buffers under test, a clock that the test moves, and short ways to write prompts."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from streams.buffer.base import Buffer, BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import RedisSettings


class HandClock:
    """Seconds; stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest_asyncio.fixture(params=["memory", "redis"])
async def make_buffer(
    request: pytest.FixtureRequest, clock: HandClock
) -> AsyncIterator[Callable[[BufferRules], Buffer]]:
    """Makes the buffer of this test with the given rules."""
    if request.param == "memory":
        yield lambda rules: MemoryBuffer(rules, clock)
        return
    client = connect(RedisSettings(url=request.getfixturevalue("redis_url")))
    namespace = request.getfixturevalue("namespace")
    yield lambda rules: RedisBuffer(client, namespace, "main", rules, clock)
    await client.aclose()
