"""What the buffer's rules cost: offers beside plain writes of the same bytes, and memory beside the payload.

Offers/s are those of a second of processor time, the client's and Redis's together: on a machine that others share, the
clock mostly tells how long the two waited for each other's turn. By the clock is told beside.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
"""As `agents.scored_log.BATCH`."""
RECORD_BYTES = 2000

Write = tuple[float, bytes, bytes]
"""Rank key, key, body."""


@dataclass
class Contest:
    """Of one mix of offers: events/s of each round, by the clock too (the warm-up first), and seconds of each batch."""

    values: dict[str, tuple[float, ...]]
    clock: dict[str, list[float]]
    seconds: list[float]


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

        def contest(seed: int, ranks: Sequence[float]) -> Contest:
            mix = offers(len(ranks), seed, ranks, RECORD_BYTES)
            writes, seconds = _writes(mix), list[float]()
            clock: dict[str, list[float]] = {"haypile": [], "plain": []}
            parts = {name: iter([slice(i * counted, (i + 1) * counted) for i in range(turns)]) for name in clock}

            def per_s(name: str) -> float:
                part, spent, started = next(parts[name]), runner.run(_cpu_s(client)), time.perf_counter()
                if name == "haypile":
                    seconds.extend(runner.run(_offer_all(buffer, mix[part])))
                else:
                    runner.run(write_all(client, plain, writes[part]))
                clock[name].append(counted / (time.perf_counter() - started))
                return counted / (runner.run(_cpu_s(client)) - spent)

            values = take_turns({name: lambda name=name: per_s(name) for name in clock}, effort.rounds)  # type: ignore[misc]
            return Contest(values, clock, seconds)

        total = turns * counted
        stream = contest(2, [rng.uniform(6, 9) if rng.random() < 0.1 else rng.uniform(1, 5) for _ in range(total)])
        harder = contest(3, [10 + i / total for i in range(total)])
        runner.run(client.aclose())
    size = f"{members:,} members of {RECORD_BYTES // 1000} kB, batches of {BATCH}, near-duplicates on"
    return [
        _offers_row(f"offers/s of processor time at {size}; one in ten is admitted", stream),
        _offers_row("the same, every one is admitted and pushes one out", harder),
        _batch_row(harder.seconds, Spread((percentile(stream.seconds, 0.99) * 1000,), "ms")),
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


def _offers_row(name: str, found: Contest) -> Row:
    clock = ", ".join(f"{who} {Spread(tuple(rates[1:]), '/s')}" for who, rates in found.clock.items())
    return Row(
        question="the buffer",
        haypile=name,
        against="pipelined ZADD + HSET of the same bytes",
        goal=Goal(at_least=0.35),
        ours=Spread(found.values["haypile"], "/s"),
        theirs=Spread(found.values["plain"], "/s"),
        measured=ratio(found.values["haypile"], found.values["plain"]),
        notes=(f"by the clock, on the machine as busy as it was: {clock}",),
    )


def _batch_row(seconds: Sequence[float], usual: Spread) -> Row:
    return Row(
        question="the buffer",
        haypile="p99 of a batch of those",
        against="",
        goal=Goal(at_most=25, unit="ms"),
        ours=Spread((percentile(seconds, 0.5) * 1000,), "ms in the median"),
        measured=Spread((percentile(seconds, 0.99) * 1000,), "ms"),
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


async def _cpu_s(client: redis.asyncio.Redis) -> float:
    """Processor time so far, of this process and of Redis."""
    cpu = await client.info("cpu")
    return time.process_time() + float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


async def _memory(client: redis.asyncio.Redis) -> int:
    return int((await client.info("memory"))["used_memory"])
