"""The lease and the trigger's memory, on a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis.asyncio

from streams.errors import Fatal
from streams.lease import Lease
from streams.records import TrainRequest
from streams.redis_client import connect
from streams.settings import RedisSettings
from streams.training_state import TrainingState, TrainingStateStore


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


async def test_one_holder_at_a_time(client: redis.asyncio.Redis, namespace: str) -> None:
    a, b = (Lease(client, namespace, "trigger", 60) for _ in range(2))
    assert await a.hold() == 1
    assert await b.hold() is None
    assert await a.hold() == 1, "asking again prolongs and keeps the number"
    assert not await b.renew() and not await b.release()
    assert await a.renew()
    assert await a.release()
    assert not await a.release() and not await a.renew()
    assert await b.hold() == 2


async def test_of_many_at_once_one_wins(client: redis.asyncio.Redis, namespace: str) -> None:
    got = await asyncio.gather(*(Lease(client, namespace, "trigger", 60).hold() for _ in range(20)))
    assert sorted(got, key=bool) == [None] * 19 + [1]


async def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_number(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    stalled, next_one = Lease(client, namespace, "trigger", 0.05), Lease(client, namespace, "trigger", 60)
    assert await stalled.hold() == 1
    await asyncio.sleep(0.1)
    assert not await stalled.renew()
    assert await next_one.hold() == 2
    assert not await stalled.release()
    assert await next_one.renew()


async def test_renewing_keeps_it(client: redis.asyncio.Redis, namespace: str) -> None:
    a, b = Lease(client, namespace, "trigger", 0.3), Lease(client, namespace, "trigger", 60)
    await a.hold()
    for _ in range(4):
        await asyncio.sleep(0.1)
        assert await a.renew()
    assert await b.hold() is None


async def test_leases_of_other_names_and_namespaces_are_apart(client: redis.asyncio.Redis, namespace: str) -> None:
    for lease in (
        Lease(client, namespace, "a", 60),
        Lease(client, namespace, "b", 60),
        Lease(client, namespace + "x", "a", 60),
    ):
        assert await lease.hold() == 1


REQUEST = TrainRequest(run_id="r1", snapshot="/s/r1", reasons=["age"], base_model="m", requested_at=5, fencing=3)
STATE = TrainingState(
    last_run_id="r1",
    last_run_at_ms=5,
    admitted_total_at_last_run=7,
    histogram_at_last_run=[1, 2],
    runs_ms=[1, 5],
    pending=REQUEST,
    last_run_ended=True,
    watched_since_ms=1,
    answers_wanted=True,
    last_decision={"train": True, "reasons": ["age"]},
)


async def test_the_state_comes_back(client: redis.asyncio.Redis, namespace: str) -> None:
    store = TrainingStateStore(client, namespace)
    assert await store.load() == TrainingState()
    assert await store.save(STATE, fencing=3)
    assert await TrainingStateStore(client, namespace).load() == STATE
    assert await TrainingStateStore(client, namespace + "x").load() == TrainingState()


async def test_a_lower_fencing_number_changes_nothing(client: redis.asyncio.Redis, namespace: str) -> None:
    store = TrainingStateStore(client, namespace)
    assert await store.save(STATE, fencing=10)
    assert not await store.save(TrainingState(last_run_id="stale"), fencing=9)
    assert await store.load() == STATE
    assert await store.save(TrainingState(last_run_id="same"), fencing=10)
    assert await store.save(TrainingState(last_run_id="newer"), fencing=11)
    assert (await store.load()).last_run_id == "newer"


async def test_a_state_of_another_version_says_so(client: redis.asyncio.Redis, namespace: str) -> None:
    await client.hset(f"{{{namespace}}}:training", "state", '{"runs_ms": "many"}')
    with pytest.raises(Fatal, match="training"):
        await TrainingStateStore(client, namespace).load()


async def test_who_has_claimed_the_state_shuts_out_older_holders_before_it_writes(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    store = TrainingStateStore(client, namespace)
    assert await store.claim(fencing=2) == TrainingState()
    assert await store.save(STATE, fencing=2)
    assert await store.claim(fencing=3) == STATE
    assert not await store.save(TrainingState(last_run_id="stale"), fencing=2)
    assert await store.claim(fencing=2) is None
    assert await store.save(TrainingState(last_run_id="newer"), fencing=3)
