"""What the buffer's rules cost: offers beside plain writes of the same bytes, and memory beside the payload."""

import asyncio
import random
import time
from collections.abc import Sequence
from uuid import uuid4

import redis.asyncio

from streams.buffer.base import BufferRules, Offer
from streams.buffer.rank import member_key
from streams.buffer.redis import RedisBuffer
from streams.records import encode
from streams.redis_client import connect
from streams.settings import BufferSettings, RedisSettings
from tests.benchmarks.harness import Effort, Goal, Row, Spread, percentile, ratio, take_turns
from tests.benchmarks.load import offers
from tests.benchmarks.services import running_valkey

BATCH = 128
"""As `agents.curate.BATCH`."""
RECORD_BYTES = 2000

Write = tuple[float, bytes, bytes]
"""Rank key, key, body."""


def measure(effort: Effort) -> list[Row]:
    """Two mixes of offers, the time of a batch, memory."""
    members, counted = effort.pick(30_000, 256), effort.pick(40, 1) * BATCH
    rules = BufferRules(members, 1.0, BufferSettings().near_duplicate)
    rng = random.Random(1)
    turns = effort.rounds + 1
    with running_valkey() as valkey, asyncio.Runner() as runner:
        client = connect(RedisSettings(url=valkey.url))
        buffer = RedisBuffer(client, uuid4().hex, "main", rules)
        plain = uuid4().hex
        empty = runner.run(_memory(client))
        standing = offers(members, 1, [rng.uniform(5, 9) for _ in range(members)], RECORD_BYTES)
        payload = sum(len(encode(offer.prompt)) for offer in standing)
        runner.run(_offer_all(buffer, standing))
        grown = runner.run(_memory(client)) - empty
        runner.run(write_all(client, plain, _writes(standing)))

        def contest(seed: int, ranks: Sequence[float]) -> tuple[dict[str, tuple[float, ...]], list[float]]:
            mix, batches = offers(len(ranks), seed, ranks, RECORD_BYTES), list[float]()
            writes = _writes(mix)
            places = {"haypile": iter(range(turns)), "plain": iter(range(turns))}

            def ours() -> float:
                start = next(places["haypile"]) * counted
                started = time.perf_counter()
                batches.extend(runner.run(_offer_all(buffer, mix[start : start + counted])))
                return counted / (time.perf_counter() - started)

            def theirs() -> float:
                start = next(places["plain"]) * counted
                started = time.perf_counter()
                runner.run(write_all(client, plain, writes[start : start + counted]))
                return counted / (time.perf_counter() - started)

            return take_turns({"haypile": ours, "plain": theirs}, effort.rounds), batches

        total = turns * counted
        stream, seconds = contest(
            2, [rng.uniform(6, 9) if rng.random() < 0.1 else rng.uniform(1, 5) for _ in range(total)]
        )
        harder, harder_seconds = contest(3, [10 + i / total for i in range(total)])
        runner.run(client.aclose())
    size = f"{members:,} members of {RECORD_BYTES // 1000} kB, batches of {BATCH}, near-duplicates on"
    return [
        _offers_row(f"offers/s at {size}; one in ten is admitted", stream),
        _offers_row("the same, every one is admitted and pushes one out", harder),
        _batch_row("p99 of a batch of those", harder_seconds, Spread((percentile(seconds, 0.99) * 1000,), "ms")),
        Row(
            question="the buffer",
            haypile=f"memory with {members:,} × {RECORD_BYTES // 1000} kB",
            against="the payload's bytes",
            goal=Goal(at_most=1.6),
            ours=Spread((grown / 2**20,), "MiB"),
            theirs=Spread((payload / 2**20,), "MiB"),
            measured=Spread((grown / payload,)),
        ),
    ]


def _offers_row(name: str, values: dict[str, tuple[float, ...]]) -> Row:
    return Row(
        question="the buffer",
        haypile=name,
        against="pipelined ZADD + HSET of the same bytes",
        goal=Goal(at_least=0.35),
        ours=Spread(values["haypile"], "/s"),
        theirs=Spread(values["plain"], "/s"),
        measured=ratio(values["haypile"], values["plain"]),
    )


def _batch_row(name: str, seconds: Sequence[float], usual: Spread) -> Row:
    p99 = Spread((percentile(seconds, 0.99) * 1000,), "ms")
    return Row(
        question="the buffer",
        haypile=name,
        against="",
        goal=Goal(at_most=25, unit="ms"),
        ours=Spread((percentile(seconds, 0.5) * 1000,), "ms in the median"),
        measured=p99,
        notes=(f"where one in ten is admitted: {usual}",),
    )


async def _offer_all(buffer: RedisBuffer, listed: Sequence[Offer]) -> list[float]:
    """Seconds of each batch."""
    seconds = []
    for start in range(0, len(listed), BATCH):
        started = time.perf_counter()
        await buffer.offer(listed[start : start + BATCH], [])
        seconds.append(time.perf_counter() - started)
    return seconds


def _writes(listed: Sequence[Offer]) -> list[Write]:
    return [(offer.rank_key, member_key(offer.prompt.id), encode(offer.prompt)) for offer in listed]


async def write_all(client: redis.asyncio.Redis, namespace: str, writes: Sequence[Write]) -> None:
    """ZADD and HSET of each, pipelined by batches."""
    rank, body = f"{namespace}:rank", f"{namespace}:body"
    for start in range(0, len(writes), BATCH):
        async with client.pipeline(transaction=False) as pipe:
            for score, key, value in writes[start : start + BATCH]:
                pipe.zadd(rank, {key: score})
                pipe.hset(body, key, value)
            await pipe.execute()


async def _memory(client: redis.asyncio.Redis) -> int:
    return int((await client.info("memory"))["used_memory"])
