"""What was forgotten leaves Redis with all that belongs to it, in both generations, and comes back with none of it."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from redis.asyncio import Redis

from agents.forget import Sweeper
from agents.ingest import Seen
from streams.buffer.base import BufferRules, Offer
from streams.buffer.redis_generations import RedisGenerations
from streams.forgotten import ForgottenList
from streams.records import Candidate
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import offer, text
from tests.support.valkey import dump

MARKER = "marker-of-anna"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


def of(user_id: str, given: Offer) -> Offer:
    return msgspec.structs.replace(given, prompt=msgspec.structs.replace(given.prompt, user_id=user_id))


def asked(*users: str) -> ForgottenList:
    found = ForgottenList()
    for offset, user in enumerate(users):
        found.take(found.request("user", user, ends={}, future=False, now_ms=1), offset)
    return found


async def test_nothing_of_it_is_left(client: Redis, namespace: str) -> None:
    rules = BufferRules(4, near_duplicate=0.7), BufferRules(4)
    generations = RedisGenerations(client, namespace, *rules)
    seen = Seen(client, namespace, 60)
    sweeper = Sweeper(client, namespace, generations, seen)
    anna = [of("anna", offer(f"{MARKER}-{i}", 3.0 + i, f"{MARKER} {text(i)}")) for i in range(3)]
    berta = [of("berta", offer(f"berta-{i}", 2.0 + 1.25 * i)) for i in range(3)]
    everyone = [*anna, *berta]
    for one in everyone:
        await seen.first(one.prompt.prompt_id, one.prompt.id)
    await seen.first("p-shared", "berta-9")
    for one in everyone:  # four places: one of each is evicted, and waits in the outbox
        await generations.main.offer([one], [])
    await generations.held_out.offer([anna[0], berta[0]], [])
    await generations.main.attach(anna[2].prompt.id, [Candidate(text=MARKER, reward=1, origin="teacher")])
    assert await generations.begin("j2") == "begun"
    again = [msgspec.structs.replace(o, prompt=msgspec.structs.replace(o.prompt, judge="j2")) for o in everyone]
    await generations.next_main.offer([again[1], again[4]], [])
    assert MARKER in await dump(client, namespace)

    known = asked("anna")
    assert await sweeper.due(known) and not await sweeper.due(ForgottenList())
    before = (await generations.read()).epoch
    swept = await sweeper.sweep(known, {("p-shared", f"{MARKER}-x"), (anna[0].prompt.prompt_id, anna[0].prompt.id)})
    assert (await generations.read()).epoch > before
    assert MARKER not in await dump(client, namespace) and "anna" not in await dump(client, namespace)
    assert swept.members["eval"] == 1 and swept.members["main"] == 2 and (swept.seen, swept.outbox) == (3, 1)
    assert {m.prompt.user_id for m in await generations.main.top(9)} == {"berta"}
    assert [m.prompt.id for m in await generations.next_main.top(9)] == ["berta-1"]
    assert await seen.first("p-shared", "new") == "berta-9", "somebody else brought it"
    assert await seen.first(anna[0].prompt.prompt_id, "new") == "new"
    assert not await sweeper.due(known)
    assert await sweeper.due(asked("anna", "berta"))
    await client.delete(f"{{{namespace}}}:forgotten")  # Redis came back older
    assert await sweeper.due(known)
    assert (await sweeper.sweep(known)).members == {"main": 0, "eval": 0}
