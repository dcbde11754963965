"""A snapshot beside reading the same bytes in one call and writing them to a file."""

import asyncio
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import redis.asyncio

from streams.buffer.base import BufferRules
from streams.buffer.redis import KEY_NAMES, RedisBuffer, generation_keys
from streams.redis_client import connect
from streams.settings import RedisSettings
from streams.snapshots import write_snapshot
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.load import offers
from tests.benchmarks.services import running_valkey

BATCH = 128
RECORD_BYTES = 2000
SLOW_US = 1000
"""Commands of Redis that take longer are looked at."""


def measure(effort: Effort) -> list[Row]:
    """Time, and the longest command that Redis served meanwhile."""
    members = effort.pick(30_000, 300)
    rng = random.Random(1)
    with running_valkey() as valkey, asyncio.Runner() as runner, TemporaryDirectory() as folder:
        client = connect(RedisSettings(url=valkey.url))
        namespace = uuid4().hex
        main, held_out = (RedisBuffer(client, namespace, name, BufferRules(members)) for name in ("main", "eval"))
        body = generation_keys(namespace, "main", 1)[KEY_NAMES.index("body")]
        standing = offers(members, 1, [rng.uniform(1, 9) for _ in range(members)], RECORD_BYTES)
        for start in range(0, members, BATCH):
            runner.run(main.offer(standing[start : start + BATCH], []))
        runner.run(_watch(client))

        def ours() -> float:
            started = time.perf_counter()
            name = f"run-{uuid4().hex[:8]}"
            runner.run(write_snapshot(folder, name, main, held_out, decision={}, settings={}, now_ms=1))
            return time.perf_counter() - started

        blocked: list[float] = []

        def ours_watched() -> float:
            runner.run(client.slowlog_reset())
            seconds = ours()
            blocked.append(runner.run(_longest_ms(client)))
            return seconds

        def theirs() -> float:
            started = time.perf_counter()
            runner.run(_plain(client, body, Path(folder) / "plain"))
            return time.perf_counter() - started

        values = take_turns({"haypile": ours_watched, "plain": theirs}, effort.rounds)
        runner.run(client.aclose())
    return [
        Row(
            question="the buffer",
            haypile=f"snapshot of {members:,} × {RECORD_BYTES // 1000} kB to Parquet",
            against="`HGETALL` + write of the same bytes",
            goal=Goal(at_most=1.5),
            ours=Spread(values["haypile"], "s"),
            theirs=Spread(values["plain"], "s"),
            measured=ratio(values["haypile"], values["plain"]),
        ),
        Row(
            question="the buffer",
            haypile="longest command of Redis during it",
            against="",
            goal=Goal(at_most=20, unit="ms"),
            ours=Spread(tuple(blocked), "ms"),
            measured=Spread((max(blocked),), "ms"),
        ),
    ]


async def _plain(client: redis.asyncio.Redis, key: str, file: Path) -> None:
    found: dict[bytes, bytes] = await client.hgetall(key)
    file.write_bytes(b"\n".join(found.values()))


async def _watch(client: redis.asyncio.Redis) -> None:
    await client.config_set("slowlog-log-slower-than", str(SLOW_US))
    await client.config_set("slowlog-max-len", "10000")


async def _longest_ms(client: redis.asyncio.Redis) -> float:
    entries: list[dict[str, Any]] = await client.slowlog_get(10_000)
    return max((entry["duration"] for entry in entries), default=SLOW_US) / 1000
