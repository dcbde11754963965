"""What operators ask of the trigger, on a real server: the trigger never overwrites it, and takes each request once."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis.asyncio

from streams.errors import Fatal
from streams.redis_client import connect
from streams.settings import RedisSettings
from streams.training_orders import AskedRun, Orders, Pause, TrainingOrders, operator, request_run
from streams.training_state import TrainingState, TrainingStateStore

NOW = 1_790_000_000_000
RUN = TrainingState(last_run_id="r1", last_run_at_ms=NOW)


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


async def test_orders_come_back_the_oldest_first(client: redis.asyncio.Redis, namespace: str) -> None:
    orders = TrainingOrders(client, namespace)
    assert await orders.read() == Orders()
    later, earlier = AskedRun(id="a", at_ms=2, reason="x", by="joe"), AskedRun(id="b", at_ms=1)
    for run in (later, earlier, later):
        await orders.ask(run)
    pause = Pause(since_ms=5, until_ms=9, reason="y", by="ann")
    await orders.pause(Pause(since_ms=1))
    await orders.pause(pause)
    assert await orders.read() == Orders(pause=pause, asked=[earlier, later])
    assert await TrainingOrders(client, namespace + "x").read() == Orders()
    assert await orders.withdraw() == [earlier, later]
    assert await orders.withdraw() == []
    await orders.resume()
    assert await orders.read() == Orders()


async def test_each_request_has_an_id_of_its_own_and_says_who(client: redis.asyncio.Redis, namespace: str) -> None:
    first = await request_run(client, namespace, "why")
    second = await request_run(client, namespace, "why", by="cron")
    assert (first.by, second.by) == (operator(), "cron")
    assert {run.id for run in (await TrainingOrders(client, namespace).read()).asked} == {first.id, second.id}


async def test_the_triggers_memory_and_the_orders_do_not_overwrite_each_other(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    assert await store.claim(3) == TrainingState()
    run, pause = AskedRun(id="a", at_ms=1), Pause(since_ms=1)
    await orders.ask(run)
    await orders.pause(pause)
    assert await store.save(RUN, 3)
    assert await orders.read() == Orders(pause=pause, asked=[run])
    await orders.resume()
    await orders.withdraw()
    assert await store.load() == RUN
    assert not await store.save(TrainingState(), 2), "orders change nothing about the fencing number"


async def test_a_decided_run_takes_off_what_it_is_for_and_nothing_else(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    taken, also, late = (AskedRun(id=f"id-{i}", at_ms=i) for i in range(3))
    for run in (taken, also, late):
        await orders.ask(run)
    assert await store.decided(RUN, 3, NOW, [taken.id, also.id]) == "stored"
    assert await store.load() == RUN
    assert (await orders.read()).asked == [late]
    for run in (taken, also):
        await orders.ask(run)  # the client repeats a call whose answer was lost
    assert (await orders.read()).asked == [late]
    assert await store.decided(RUN, 3, NOW, [taken.id, also.id]) == "stored", "so does the trigger's"
    assert (await orders.read()).asked == [late]


async def test_what_was_taken_back_after_the_decision_is_not_made(client: redis.asyncio.Redis, namespace: str) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    kept = AskedRun(id="b", at_ms=2)
    await orders.ask(kept)
    assert await store.decided(RUN, 3, NOW, ["a", kept.id]) == "withdrawn"
    assert (await store.load(), (await orders.read()).asked) == (TrainingState(), [kept])


async def test_a_stored_run_stays_stored_when_the_call_is_repeated_in_a_pause(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    assert await store.decided(RUN, 3, NOW, []) == "stored"
    await orders.pause(Pause(since_ms=1))
    assert await store.decided(RUN, 3, NOW, []) == "stored"
    other = TrainingState(last_run_id="r2")
    assert await store.decided(other, 3, NOW, []) == "paused"
    assert await store.load() == RUN


async def test_a_trigger_without_the_lease_takes_nothing_off(client: redis.asyncio.Redis, namespace: str) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    run = AskedRun(id="a", at_ms=1)
    await orders.ask(run)
    await store.claim(9)
    assert await store.decided(RUN, 8, NOW, ["a"]) == "stale"
    assert (await store.load(), (await orders.read()).asked) == (TrainingState(), [run])


@pytest.mark.parametrize(("until_ms", "said"), [(None, "paused"), (NOW + 1, "paused"), (NOW, "stored")])
async def test_a_pause_after_the_decision_counts(
    client: redis.asyncio.Redis, namespace: str, until_ms: int | None, said: str
) -> None:
    orders, store = TrainingOrders(client, namespace), TrainingStateStore(client, namespace)
    await orders.ask(AskedRun(id="a", at_ms=1))
    pause = Pause(since_ms=1, until_ms=until_ms)
    await orders.pause(pause)
    assert await store.decided(RUN, 1, NOW, ["a"]) == said
    assert pause.holds(NOW) == (said == "paused")
    assert (await store.load() == RUN) == (said == "stored")
    assert len((await orders.read()).asked) == (said == "paused")


async def test_orders_of_another_version_say_so(client: redis.asyncio.Redis, namespace: str) -> None:
    await client.hset(f"{{{namespace}}}:training", "pause", '{"since_ms": "soon"}')
    with pytest.raises(Fatal, match="cannot be read"):
        await TrainingOrders(client, namespace).read()
