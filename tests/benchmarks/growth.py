"""Does an event cost more, or leave more behind, the more there were before it?

The handlers of `ingest`, `score` and `curate` over a real Redis, one after the other as they are in a worker, with a
judge that is free and a broker that hands each record on and forgets it: a million events, looked at by decades. Cost
is processor time, of this process and of Redis, so that others on the machine do not count.
"""

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise
from uuid import uuid4

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from agents.curate import Curate, Curator
from agents.ingest import Ingest, Seen
from agents.score import Score
from agents.scored_log import Log
from deploy import intake
from streams.app import Inbound
from streams.buffer.base import rules
from streams.buffer.redis_generations import RedisGenerations
from streams.metrics import Metrics
from streams.records import encode
from streams.redis_client import connect
from streams.settings import KafkaSettings, RedisSettings, Settings
from streams.topics import topic_names
from streams.vllm import VllmPool
from tests.benchmarks.free_worker import FreeJudge
from tests.benchmarks.harness import Effort, Goal, Row, Spread, number
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import rss_bytes, running_valkey

AT_ONCE = 256
"""As `worker.window`."""
WARM_UP = 2_048
DECADES = (1_000, 10_000, 100_000, 1_000_000)
GOAL = Goal(at_most=1.15)


@dataclass(frozen=True)
class Mark:
    """What was spent and is held after so many events."""

    events: int
    own_cpu_s: float
    redis_cpu_s: float
    rss: int
    redis_bytes: int


def measure(effort: Effort) -> list[Row]:
    """Cost and memory of each decade beside the first's."""
    ends = tuple(end for end in DECADES if end <= effort.events) if not effort.quick else (100, 200)
    with running_valkey() as valkey:
        marks = asyncio.run(_run(valkey.url, ends))
    costs = [_cost_us(before, after) for before, after in pairwise(marks)]
    own = [_cost_us(before, after, redis=False) for before, after in pairwise(marks)]
    held = [(mark.redis_bytes - marks[0].redis_bytes) / mark.events for mark in marks[1:]]
    spans = [f"{before.events:,} to {after.events:,}" for before, after in pairwise(marks)]
    told = "; ".join(
        f"{span}: {number(cost)} µs, {number(mine)} of it Python's"
        for span, cost, mine in zip(spans, costs, own, strict=True)
    )
    memory = "; ".join(
        f"after {mark.events:,}: process {mark.rss / 2**20:.0f} MiB, Redis {number(bytes_)} bytes an event"
        for mark, bytes_ in zip(marks[1:], held, strict=True)
    )
    grown = (marks[-1].rss - marks[1].rss) / (marks[-1].events - marks[1].events)
    return [
        Row(
            question="growth",
            haypile=f"processor time an event, up to {ends[-1]:,} events",
            against=f"the first {ends[0]:,}",
            goal=GOAL,
            ours=Spread((max(costs[1:]),), "µs in the dearest decade"),
            theirs=Spread((costs[0],), "µs"),
            measured=Spread((max(costs[1:]) / costs[0],)),
            notes=(told,),
        ),
        Row(
            question="growth",
            haypile="memory an event (Redis), the same",
            against=f"the first {ends[0]:,}",
            goal=GOAL,
            ours=Spread((max(held[1:]),), "bytes in the dearest decade"),
            theirs=Spread((held[0],), "bytes"),
            measured=Spread((max(held[1:]) / held[0],)),
            notes=(memory, f"the process grew by {number(grown)} bytes an event after the first decade"),
        ),
    ]


def _cost_us(before: Mark, after: Mark, *, redis: bool = True) -> float:
    spent = after.own_cpu_s - before.own_cpu_s
    if redis:
        spent += after.redis_cpu_s - before.redis_cpu_s
    return spent / (after.events - before.events) * 1e6


async def _run(url: str, ends: tuple[int, ...]) -> list[Mark]:
    client = connect(RedisSettings(url=url))
    await Pipeline(client).feed(raw_records(min(WARM_UP, ends[-1]), 0))
    await client.flushdb()  # a server of its own
    pipeline = Pipeline(client)
    marks, done, seed = [await pipeline.mark(0)], 0, 1
    for end in ends:
        while done < end:
            records = raw_records(min(10_000, end - done), seed)
            await pipeline.feed(records)
            done, seed = done + len(records), seed + 1
        marks.append(await pipeline.mark(done))
    await client.aclose()
    return marks


class Forgetful:
    """In place of the producer: the last batch sent to each topic."""

    def __init__(self) -> None:
        self.sent: dict[str, list[bytes]] = {}

    async def send(
        self, topic: str, record: msgspec.Struct, key: str, headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        self.sent.setdefault(topic, []).append(encode(record))

    def take(self, topic: str) -> list[bytes]:
        return self.sent.pop(topic, [])


class Pipeline:
    """The three handlers, made as a worker makes them."""

    def __init__(self, client: Redis) -> None:
        settings, metrics = Settings(), Metrics(CollectorRegistry())
        namespace = uuid4().hex
        self._client = client
        self._topics = topic_names(KafkaSettings())
        self._broker = Forgetful()
        self._offsets: dict[str, int] = {}
        self._cpu_s = 0.0
        generations = RedisGenerations(
            client, namespace, rules(settings.buffer, "main"), rules(settings.buffer, "eval")
        )
        self._ingest = Ingest(
            settings.ingest,
            self._topics,
            seen=Seen(client, namespace, settings.ingest.repeat_window_s),
            contamination=intake.contamination(settings.ingest),
            languages=intake.language_detector(settings.ingest),
            count_tokens=intake.token_counter(settings.ingest.tokenizer),
            redactor=intake.redactor(settings.ingest),
            producer=self._broker,  # type: ignore[arg-type]
            metrics=metrics,
        )
        judge = FreeJudge(VllmPool([]), settings.judge)
        self._score = Score(
            self._topics,
            judge=judge,
            producer=self._broker,  # type: ignore[arg-type]
            now_ms=lambda: 1,
        )
        self._curate = Curate(
            Curator(settings.buffer, generations.main, generations.held_out, lambda: 1, generations=generations),
            [generations.main, generations.held_out],
            self._topics,
            log_of_scored=Log(KafkaSettings(), self._topics),
            producer=self._broker,  # type: ignore[arg-type]
            metrics=metrics,
        )

    async def feed(self, records: list[bytes]) -> None:
        """All three hops for each record, a window at a time."""
        for start in range(0, len(records), AT_ONCE):
            before = time.process_time()
            await self._hop(self._ingest, self._topics.raw, records[start : start + AT_ONCE])
            await self._hop(self._score, self._topics.accepted, self._broker.take(self._topics.accepted))
            await self._hop(self._curate, self._topics.scored, self._broker.take(self._topics.scored))
            self._broker.take(self._topics.curated)
            self._cpu_s += time.process_time() - before

    async def _hop(self, handler: Ingest | Score | Curate, topic: str, values: list[bytes]) -> None:
        first = self._offsets.get(topic, 0)
        self._offsets[topic] = first + len(values)
        inbound = [Inbound(topic, 0, first + i, value, 1_763_000_000_000, ()) for i, value in enumerate(values)]
        await asyncio.gather(*(handler(record) for record in inbound))

    async def mark(self, events: int) -> Mark:
        """Spent and held until now."""
        cpu, memory = await self._client.info("cpu"), await self._client.info("memory")
        redis_cpu = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        return Mark(events, self._cpu_s, redis_cpu, rss_bytes(), int(memory["used_memory"]))
