"""After a fence nobody offers what was decided before it: what the right to be forgotten stands on."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from agents.curate import Curator
from agents.scored_log import Scored
from streams.buffer.base import BufferRules, Position
from streams.buffer.generations import GenerationMoved, Generations
from streams.buffer.memory_generations import MemoryGenerations
from streams.buffer.redis_generations import RedisGenerations
from streams.forgotten import ForgottenList
from streams.redis_client import connect
from streams.settings import BufferSettings, RedisSettings
from tests.support.prompts import HandClock, offer

Make = Callable[[], Generations]
"""Somebody else's view of the same buffers."""


@pytest_asyncio.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    rules = BufferRules(10), BufferRules(5)
    if request.param == "memory":
        one = MemoryGenerations(*rules, HandClock())
        yield lambda: one
        return
    client = connect(RedisSettings(url=request.getfixturevalue("redis_url")))
    namespace = request.getfixturevalue("namespace")
    yield lambda: RedisGenerations(client, namespace, *rules)
    await client.aclose()


async def test_an_offer_decided_before_a_fence_changes_nothing(make: Make) -> None:
    ours, theirs = make(), make()
    epoch = (await theirs.read()).epoch
    await theirs.main.offer([offer("a")], [Position(0, 0, 0)], epoch)
    await ours.fence()
    for buffer in (theirs.main, theirs.held_out):
        with pytest.raises(GenerationMoved):
            await buffer.offer([offer("b")], [], epoch)
    assert [m.prompt.id for m in await ours.main.top(9)] == ["a"] and (await ours.held_out.stats()).size == 0
    now = (await theirs.read()).epoch
    await theirs.main.offer([offer("b")], [Position(0, 1, 1)], now)
    assert (await ours.main.stats()).size == 2
    await ours.begin("j2")
    with pytest.raises(GenerationMoved):
        await theirs.next_main.offer([offer("b", judge="j2")], [], now)


async def test_a_fence_leaves_a_rescoring_as_it_is(make: Make) -> None:
    ours = make()
    await ours.main.offer([offer("a"), offer("b")], [])
    assert await ours.begin("j2") == "begun"
    await ours.fence()
    await ours.next_main.offer([offer("a", judge="j2")], [])
    assert not await ours.switch()
    await ours.fence()
    await ours.next_main.offer([offer("b", judge="j2")], [])
    assert await ours.switch()
    assert {m.prompt.judge for m in await ours.main.top(9)} == {"j2"}


async def test_a_curator_with_an_old_list_brings_back_nothing_that_was_swept(make: Make) -> None:
    """It holds its records when somebody asks to be forgotten; the buffer is swept, and only then it goes on."""
    known, topic = ForgottenList(), ForgottenList()
    refreshed = 0

    async def refresh() -> None:
        nonlocal refreshed
        refreshed += 1
        for record in topic.records():
            known.take(record)

    generations = make()
    curator = Curator(
        BufferSettings(near_duplicate=None),
        generations.main,
        generations.held_out,
        lambda: 1,
        generations=generations,
        forgotten=known,
        refresh=refresh,
    )
    records = [Scored(0, at, offer(id).prompt) for at, id in enumerate("abc")]
    await curator.apply(records[:1], [Position(0, 0, 0)])
    assert refreshed == 1
    for id in "ab":
        topic.take(topic.request("prompt", id, ends={}, future=False, now_ms=1))
    other = make()
    await other.fence()
    await other.main.remove(["a"])
    outcomes = await curator.apply(records, [Position(0, 0, 2)])
    assert [outcome and outcome.outcome for outcome in outcomes] == ["forgotten", "forgotten", "admitted"]
    assert [m.prompt.id for m in await other.main.top(9)] == ["c"]
    assert await other.main.positions() == {0: 2}, "or it would be read again for ever"
    await curator.apply(records, [Position(0, 0, 2)])
    assert refreshed == 2, "once an epoch"


async def test_a_fence_that_somebody_else_of_the_process_has_noticed_still_holds(make: Make) -> None:
    """Both share what is known of the generations: the epoch that counts is the one in which the curator decided."""
    known, topic = ForgottenList(), ForgottenList()

    async def refresh() -> None:
        for record in topic.records():
            known.take(record)

    generations = make()
    real = generations.main.offer

    async def late(*args: Any) -> Any:
        generations.main.offer = real  # type: ignore[method-assign]
        topic.take(topic.request("prompt", "a", ends={}, future=False, now_ms=1))
        await make().fence()
        await generations.read()
        return await real(*args)

    generations.main.offer = late  # type: ignore[method-assign]
    curator = Curator(
        BufferSettings(near_duplicate=None),
        generations.main,
        generations.held_out,
        lambda: 1,
        generations=generations,
        forgotten=known,
        refresh=refresh,
    )
    [outcome] = await curator.apply([Scored(0, 0, offer("a").prompt)], [Position(0, 0, 0)])
    assert outcome is not None and outcome.outcome == "forgotten"
    assert (await generations.main.stats()).size == 0


async def test_a_list_that_cannot_be_refreshed_lets_nothing_through(make: Make) -> None:
    generations = make()

    async def refresh() -> None:
        raise ConnectionError

    curator = Curator(
        BufferSettings(), generations.main, generations.held_out, lambda: 1, generations=generations, refresh=refresh
    )
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await curator.apply([Scored(0, 0, offer("a").prompt)], [])
    assert (await generations.main.stats()).size == 0
