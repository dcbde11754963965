"""What only the Redis buffer can get wrong: clients at once, restarts, repeated calls, a server in trouble."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio
from redis.exceptions import ConnectionError

import streams.buffer.redis
from streams.buffer.base import BufferRules, Offer, Position
from streams.buffer.memory import MemoryBuffer
from streams.buffer.redis import RedisBuffer
from streams.errors import Fatal, Transient
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import HandClock, offer, twin
from tests.support.valkey import Valkey

RULES = BufferRules(30, 0.5, 0.8)


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Valkey]:
    """A server that writes every command to disk before it answers."""
    server = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


def stream(n: int, seed: int = 0) -> list[Offer]:
    """Offers of one partition, with twins and ties."""
    rng = random.Random(seed)
    return [
        offer(f"p{i}", rng.randint(1, 40) / 4, twin(rng.randint(0, n), i), rng.choice("abc"), at=(0, i))
        for i in range(n)
    ]


async def feed(buffer: RedisBuffer | MemoryBuffer, offers: list[Offer]) -> None:
    for start in range(0, len(offers), 16):
        batch = offers[start : start + 16]
        await buffer.offer(batch, [Position(0, batch[0].offset, batch[-1].offset)])


async def test_two_clients_at_once_keep_the_top_k(redis_url: str, namespace: str) -> None:
    offers = [offer(f"p{i}", random.Random(i).random()) for i in range(400)]
    rules = BufferRules(50)

    async def work(mine: list[Offer]) -> None:
        client = connect(RedisSettings(url=redis_url))
        buffer = RedisBuffer(client, namespace, "main", rules)
        for start in range(0, len(mine), 5):
            await buffer.offer(mine[start : start + 5], [])
            await asyncio.sleep(0)
        await client.aclose()

    await asyncio.gather(work(offers[::2]), work(offers[1::2]), work(offers[100:300]))
    client = connect(RedisSettings(url=redis_url))
    buffer = RedisBuffer(client, namespace, "main", rules)
    best = sorted(offers, key=lambda o: -o.rank_key)[:50]
    assert [m.prompt.id for m in await buffer.top(100)] == [o.prompt.id for o in best]
    stats = await buffer.stats()
    assert stats.admitted_total - stats.evicted_total == stats.size == 50
    await client.aclose()


async def test_two_workers_never_answer_the_same(redis_url: str, namespace: str) -> None:
    clients = [connect(RedisSettings(url=redis_url)) for _ in range(4)]
    buffers = [RedisBuffer(c, namespace, "main", BufferRules(100)) for c in clients]
    await buffers[0].offer([offer(f"p{i}", float(i)) for i in range(60)], [])
    got = await asyncio.gather(*(b.unanswered(5) for b in buffers * 3))
    claimed = [m.prompt.id for members in got for m in members]
    assert len(claimed) == len(set(claimed)) == 60
    for c in clients:
        await c.aclose()


async def test_the_two_buffers_of_a_namespace_and_those_of_another_are_apart(
    client: redis.asyncio.Redis, namespace: str
) -> None:
    main = RedisBuffer(client, namespace, "main", RULES)
    await main.offer([offer("a", 5.0)], [Position(0, 0, 0)])
    for other in (
        RedisBuffer(client, namespace, "eval", RULES),
        RedisBuffer(client, namespace + "x", "main", RULES),
    ):
        assert (await other.stats()).size == 0
        await other.offer([offer("a", 1.0)], [Position(0, 0, 5)])
        await other.clear()
    assert [m.rank_key for m in await main.top(9)] == [5.0]
    assert await main.positions() == {0: 0}


async def test_all_keys_are_in_one_hash_slot(client: redis.asyncio.Redis, namespace: str) -> None:
    buffer = RedisBuffer(client, namespace, "main", RULES)
    await feed(buffer, stream(100))
    keys = [key async for key in client.scan_iter(match=f"*{namespace}*", count=1000)]
    assert len(keys) > 8
    assert all(key.startswith(f"{{{namespace}}}:".encode()) for key in keys)
    await buffer.clear()
    assert [key async for key in client.scan_iter(match=f"*{namespace}*", count=1000)] == []


async def test_what_was_answered_survives_kill_9(durable: Valkey, namespace: str) -> None:
    clock = HandClock()
    offers = stream(200)
    client = connect(RedisSettings(url=durable.url))
    buffer = RedisBuffer(client, namespace, "main", RULES, clock)
    reference = MemoryBuffer(RULES, clock)
    await feed(buffer, offers[:112])
    await feed(reference, offers[:112])
    durable.kill()
    with pytest.raises(Transient, match=rf"127\.0\.0\.1:{durable.port}"):
        await buffer.top(1)
    durable.start()
    assert await buffer.positions() == {0: 111}
    await feed(buffer, offers[96:])  # the last batch before the kill comes again
    await feed(reference, offers[96:])
    assert await buffer.top(100) == await reference.top(100)
    assert await buffer.stats() == await reference.stats()
    assert {o.id for o in await buffer.outbox(999)} == {o.id for o in await reference.outbox(999)}
    await client.aclose()


async def test_a_call_that_ran_but_whose_answer_got_lost_changes_nothing_when_repeated(
    client: redis.asyncio.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock()
    offers = stream(100)
    buffer = RedisBuffer(client, namespace, "main", RULES, clock)
    reference = MemoryBuffer(RULES, clock)
    await feed(reference, offers)

    # The retry of redis-py is around sending and reading: the first answer is read, then thrown away.
    read = redis.asyncio.Redis.parse_response
    lost = 0

    async def lossy(self: redis.asyncio.Redis, connection: object, command: str, **options: object) -> object:
        nonlocal lost
        answer = await read(self, connection, command, **options)  # type: ignore[arg-type]
        if command == "EVALSHA" and lost % 2 == 0:
            lost += 1
            raise ConnectionError("lost")
        lost += command == "EVALSHA"
        return answer

    monkeypatch.setattr(redis.asyncio.Redis, "parse_response", lossy)
    await feed(buffer, offers)
    monkeypatch.undo()
    assert lost >= 14
    assert await buffer.top(100) == await reference.top(100)
    assert await buffer.stats() == await reference.stats()


async def test_a_smaller_capacity_is_reached_bit_by_bit(client: redis.asyncio.Redis, namespace: str) -> None:
    await RedisBuffer(client, namespace, "main", BufferRules(100)).offer(
        [offer(f"p{i}", float(i)) for i in range(100)], []
    )
    small = RedisBuffer(client, namespace, "main", BufferRules(10))
    sizes = []
    for i in range(8):
        await small.offer([offer(f"new{i}", 1000.0 + i)], [])
        sizes.append((await small.stats()).size)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 100 and sizes[-1] == 10
    assert [m.prompt.id for m in await small.top(10, offset=8)] == ["p99", "p98"]


async def test_claims_pass_many_members_on_in_pieces(client: redis.asyncio.Redis, namespace: str) -> None:
    clock = HandClock()
    buffer = RedisBuffer(client, namespace, "main", BufferRules(5000), clock)
    offers = [offer(f"p{i}", float(i), content="same") for i in range(4500)]
    for start in range(0, 4500, 500):
        await buffer.offer(offers[start : start + 500], [])
    clock.now += 1
    hardest = await buffer.unanswered(3, int(clock.now * 1000))
    assert [m.prompt.id for m in hardest] == ["p4499", "p4498", "p4497"]
    assert len(await buffer.unanswered(5000, claim_s=1)) == 4497
    clock.now += 1
    assert len(await buffer.unanswered(5000)) == 4497
    assert len([m async for chunk in buffer.iterate() for m in chunk]) == 4500
    assert await buffer.remove([o.prompt.id for o in offers]) == 4500


async def test_boilerplate_shared_by_very_many_is_bounded(client: redis.asyncio.Redis, namespace: str) -> None:
    """Texts that share half of their words are candidates of each other all the time; none is lost over it."""
    rules = BufferRules(2000, near_duplicate=0.8)
    buffer = RedisBuffer(client, namespace, "main", rules)
    common = twin(1, 0, 60)
    offers = [offer(f"p{i}", float(i), f"{common} {twin(i + 2, i, 30)}") for i in range(1500)]
    slowest = 0.0
    for start in range(0, 1500, 50):
        began = asyncio.get_running_loop().time()
        result = await buffer.offer(offers[start : start + 50], [])
        slowest = max(slowest, asyncio.get_running_loop().time() - began)
        assert {o.outcome for o in result} == {"admitted"}
    assert slowest < 2


# A server in trouble


async def test_out_of_memory_is_transient_and_leaves_nothing(tmp_path: Path, namespace: str) -> None:
    server = Valkey(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    server.start()
    client = connect(RedisSettings(url=server.url))
    try:
        buffer = RedisBuffer(client, namespace, "main", BufferRules(100_000))
        done = 0
        with pytest.raises(Transient, match="maxmemory"):
            while done < 10_000:
                batch = [offer(f"p{i}", float(i), "x" * 2000, at=(0, i)) for i in range(done, done + 20)]
                await buffer.offer(batch, [Position(0, done, done + 19)])
                done += 20
        assert 0 < done < 10_000
        assert await buffer.positions() == {0: done - 1}
        assert (await buffer.stats()).size == done
        await client.config_set("maxmemory", "100mb")
        await buffer.offer([offer("more", at=(0, done))], [Position(0, done, done)])
        assert await buffer.positions() == {0: done}
    finally:
        await client.aclose()
        server.kill()


async def test_a_replica_is_transient(tmp_path: Path, namespace: str) -> None:
    server = Valkey(tmp_path)
    server.start()
    client = connect(RedisSettings(url=server.url))
    try:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Transient, match="read only replica"):
            await RedisBuffer(client, namespace, "main", RULES).offer([offer("a")], [])
    finally:
        await client.aclose()
        server.kill()


async def test_a_wrong_password_is_fatal_and_not_told(tmp_path: Path, namespace: str) -> None:
    server = Valkey(tmp_path, "--requirepass", "right")
    server.start()
    try:
        for user in ("", ":wrong-secret@"):
            client = connect(RedisSettings(url=f"redis://{user}127.0.0.1:{server.port}/0"))
            with pytest.raises(Fatal, match=str(server.port)) as caught:
                await RedisBuffer(client, namespace, "main", RULES).stats()
            assert "wrong-secret" not in str(caught.value)
            await client.aclose()
    finally:
        server.kill()


async def test_keys_of_another_kind_are_fatal(client: redis.asyncio.Redis, namespace: str) -> None:
    await client.set(f"{{{namespace}}}:main:g1:rank", "text")
    with pytest.raises(Fatal, match="WRONGTYPE"):
        await RedisBuffer(client, namespace, "main", RULES).offer([offer("a")], [])


async def test_what_is_below_the_threshold_goes_without_its_text_until_the_threshold_falls(
    client: redis.asyncio.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = RedisBuffer(client, namespace, "main", BufferRules(3, 1.0, 0.8))
    await buffer.offer([offer(f"m{i}", 5.0 + i) for i in range(3)], [])
    made: list[str] = []
    whole = streams.buffer.redis._trail
    monkeypatch.setattr(streams.buffer.redis, "_trail", lambda o, near: (made.append(o.prompt.id), whole(o, near))[1])
    [first] = await buffer.offer([offer("soft", 4.0, at=(0, 0))], [Position(0, 0, 0)])
    assert made == ["soft"], "no threshold was seen yet"
    [second] = await buffer.offer([offer("softer", 3.0, at=(0, 1))], [Position(0, 1, 1)])
    assert made == ["soft"]
    assert [(o.outcome, o.threshold) for o in (first, second)] == [("below_threshold", 5.0)] * 2
    assert await buffer.positions() == {0: 1}
    await buffer.remove(["m0"])
    outcomes = await buffer.offer([offer("back", 4.5, at=(0, 2)), offer("soft", 4.0, at=(0, 3))], [Position(0, 2, 3)])
    assert [o.outcome for o in outcomes] == ["admitted", "below_threshold"]
    assert [m.prompt.id for m in await buffer.top(9)] == ["m2", "m1", "back"]
    assert (await buffer.positions(), (await buffer.stats()).threshold) == ({0: 3}, 4.5)
