"""The two buffers under test, with a clock that the test moves."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from streams.buffer.base import Buffer, BufferRules
from streams.buffer.memory import MemoryBuffer
from streams.buffer.redis import RedisBuffer
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import HandClock


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
