"""The handlers of ingest, score and curate: done when their effect is somewhere safe, and the same when done again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from agents.curate import Curate, Curator, replay
from agents.ingest import Ingest, Seen
from agents.score import Score
from agents.scored_log import Log, Scored, read_scored
from deploy import intake
from streams.app import Inbound
from streams.buffer.base import BufferRules, Offer, Position
from streams.buffer.memory import MemoryBuffer
from streams.errors import InvalidRecord, Transient
from streams.judge import Rating
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, CuratedOutcome, Message, ScoredPrompt, encode
from streams.redis_client import connect
from streams.settings import BufferSettings, IngestSettings, KafkaSettings, RedisSettings
from streams.topics import topic_names

TOPICS = topic_names(KafkaSettings())


class Producer:
    """Keeps what was sent; while `away` the broker has not answered yet."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
        await self.answers.wait()
        self.sent.append((topic, record))

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.sent]


def inbound(value: bytes, offset: int = 0, topic: str = TOPICS.raw) -> Inbound:
    return Inbound(topic, 0, offset, value, 1_790_000_000_000, (("haypile-attempts", b"[]"),))


def scored(id: str, difficulty: float = 5.0) -> ScoredPrompt:
    return ScoredPrompt(
        id=id,
        prompt_id=id,
        messages=[Message("user", f"what of {id}?")],
        ts=1,
        difficulty=difficulty,
        quality=8,
        category="math",
        label_mass=1,
        judge="j",
    )


@pytest.fixture
async def seen(redis_url: str, namespace: str) -> AsyncIterator[Seen]:
    client = connect(RedisSettings(url=redis_url))
    yield Seen(client, namespace, 60)
    await client.aclose()


def ingest_with(seen: Seen, producer: Producer) -> Ingest:
    settings = IngestSettings()
    return Ingest(
        settings,
        TOPICS,
        seen=seen,
        contamination=intake.contamination(settings),
        languages=intake.language_detector(settings),
        count_tokens=intake.token_counter(settings.tokenizer),
        redactor=intake.redactor(settings),
        producer=producer,  # type: ignore[arg-type]
        metrics=Metrics(CollectorRegistry()),
    )


class OneRating:
    identity = "j"

    async def rate(self, messages: Sequence[Message]) -> Rating:
        return Rating(difficulty=5, quality=8, category="math", label_mass=1, seen_chars=1)


class FakeLog:
    """The topic `prompts.scored`, one partition, in memory."""

    def __init__(self, prompts: Sequence[ScoredPrompt]) -> None:
        self.values = [encode(prompt) for prompt in prompts]
        self.read_from: list[int] = []

    async def committed(self) -> dict[int, int]:
        return {0: len(self.values)}

    async def between(self, partition: int, first: int, end: int) -> AsyncIterator[list[Scored]]:
        self.read_from.append(first)
        for at in range(first, end, 2):
            yield [read_scored(partition, offset, self.values[offset]) for offset in range(at, min(at + 2, end))]


class Bench:
    """`Curate` on the reference buffer."""

    def __init__(self, prompts: Sequence[ScoredPrompt], capacity: int = 100) -> None:
        self.log = FakeLog(prompts)
        self.new_buffers(capacity)
        self.producer = Producer()

    def new_buffers(self, capacity: int = 100) -> None:
        self.main = MemoryBuffer(BufferRules(capacity), time.time)
        self.held_out = MemoryBuffer(BufferRules(10), time.time)

    def curate(self) -> Curate:
        curator = Curator(BufferSettings(), self.main, self.held_out, lambda: 1)
        return Curate(
            curator,
            [self.main, self.held_out],
            TOPICS,
            log_of_scored=self.log,  # type: ignore[arg-type]
            producer=self.producer,  # type: ignore[arg-type]
            metrics=Metrics(CollectorRegistry()),
        )

    def record(self, offset: int) -> Inbound:
        return inbound(self.log.values[offset], offset, TOPICS.scored)

    async def ids(self) -> set[str]:
        return {member.prompt.id for member in await self.main.top(1000)}


async def test_a_redelivered_record_is_no_repeat_of_itself_but_another_one_is(seen: Seen) -> None:
    producer = Producer()
    ingest = ingest_with(seen, producer)
    value = json.dumps({"id": "a", "prompt": "Why?"}).encode()
    assert [await ingest(inbound(value)), await ingest(inbound(value))] == ["accepted", "accepted"]
    assert await ingest(inbound(json.dumps({"id": "b", "prompt": " Why? "}).encode(), 1)) == "exact_repeat"
    assert await ingest(inbound(value)) == "accepted", (
        "redelivered after the repeat: still the first, else it were lost"
    )
    twice = json.dumps({"prompt": "How?"}).encode()
    outcomes = await asyncio.gather(ingest(inbound(twice, 2)), ingest(inbound(twice, 2)), ingest(inbound(twice, 3)))
    assert outcomes == ["accepted", "accepted", "exact_repeat"], "also within one round trip, and without an id"
    refusals = [record for topic, record in producer.sent if topic == TOPICS.curated]
    assert [(r.id, r.detail) for r in refusals if isinstance(r, CuratedOutcome)] == [
        ("b", "a"),
        ("prompts.raw:0:3", "prompts.raw:0:2"),
    ]


Handle = Callable[[Inbound], Awaitable[str]]


@pytest.mark.parametrize("name", ["ingest", "ingest refuses", "score", "curate"])
async def test_a_record_is_done_when_the_broker_has_what_came_of_it(seen: Seen, name: str) -> None:
    producer = Producer()
    value = json.dumps({"id": "a", "prompt": "Why?"}).encode()
    handle: Handle
    if name.startswith("ingest"):
        handle = ingest_with(seen, producer)
        if name == "ingest refuses":
            await handle(inbound(json.dumps({"id": "first", "prompt": "Why?"}).encode()))
        record = inbound(value, 1)
    elif name == "score":
        handle = Score(TOPICS, judge=OneRating(), producer=producer, now_ms=lambda: 5)  # type: ignore[arg-type]
        accepted = AcceptedPrompt(id="a", prompt_id="a", messages=[Message("user", "Why?")], ts=1)
        record = inbound(encode(accepted), 0, TOPICS.accepted)
    else:
        bench = Bench([scored("a")])
        bench.producer = producer
        handle, record = bench.curate(), bench.record(0)
    before = len(producer.sent)
    producer.answers.clear()
    task = asyncio.ensure_future(handle(record))
    await asyncio.sleep(0.1)
    assert not task.done(), "the ack would come before the effect"
    producer.answers.set()
    await asyncio.wait_for(task, 5)
    assert len(producer.sent) == before + 1


async def test_curate_is_done_when_the_buffer_has_the_record() -> None:
    bench = Bench([scored("a")])
    offer = bench.main.offer
    away = True

    async def failing(
        offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        if away:
            raise Transient("Redis is away")
        return await offer(offers, positions)

    bench.main.offer = failing  # type: ignore[method-assign]
    task = asyncio.ensure_future(bench.curate()(bench.record(0)))
    await asyncio.sleep(0.2)
    assert not task.done()
    assert bench.producer.sent == []
    away = False
    assert await asyncio.wait_for(task, 10) == "admitted"
    assert await bench.ids() == {"a"}


async def test_a_buffer_that_is_behind_gets_the_gap_from_the_log_first() -> None:
    bench = Bench([scored(f"p{i}") for i in range(7)])
    curate = bench.curate()
    assert await curate(bench.record(0)) == "admitted"
    assert await curate(bench.record(6)) == "admitted", "after 1 to 5, which it has never seen"
    assert bench.log.read_from == [1]
    assert await bench.ids() == {f"p{i}" for i in range(7)}
    assert await bench.main.positions() == {0: 6}


async def test_a_buffer_that_came_back_empty_is_filled_although_no_record_comes() -> None:
    bench = Bench([scored(f"p{i}") for i in range(5)])
    bench.new_buffers()
    curate = bench.curate()
    assert await curate.repair() == 5
    assert await bench.ids() == {f"p{i}" for i in range(5)}
    assert await curate.repair() == 0, "once"


async def test_a_replay_passes_over_holes_and_over_what_cannot_be_read() -> None:
    bench = Bench([scored("a"), scored("b"), scored("c")])
    bench.log.values[1] = b"no record"
    curator = Curator(BufferSettings(), bench.main, bench.held_out, lambda: 1)
    log: Log = bench.log  # type: ignore[assignment]

    async def short(partition: int, first: int, end: int) -> AsyncIterator[list[Scored]]:
        yield [read_scored(0, offset, bench.log.values[offset]) for offset in range(first, 2)]

    bench.log.between = short  # type: ignore[method-assign]
    assert await replay(log, curator, 0, 0, 9) == 2
    assert await bench.ids() == {"a"}
    assert await bench.main.positions() == {0: 8}, "to the end, although the log stops before it"


async def test_a_record_of_the_log_that_cannot_be_read_is_a_dead_letter_and_leaves_no_gap() -> None:
    bench = Bench([scored("a"), scored("b")])
    bench.log.values[0] = b'{"id": "x", "later": ' + b"[" * 5000
    curate = bench.curate()
    with pytest.raises(InvalidRecord, match="not_scored_record"):
        await curate(bench.record(0))
    assert await curate(bench.record(1)) == "admitted"
    assert bench.log.read_from == []


async def test_evictions_are_published_also_those_of_a_worker_that_died_before_it_could() -> None:
    bench = Bench([scored("weak", 2.0), scored("strong", 8.0), scored("weaker", 1.0)], capacity=1)
    await bench.curate()(bench.record(0))
    dead = Curator(BufferSettings(), bench.main, bench.held_out, lambda: 1)
    await dead.apply([read_scored(0, 1, bench.log.values[1])], [Position(0, 1, 1)])
    bench.producer.sent.clear()
    await bench.curate()(bench.record(2))
    outcomes = [(r.id, r.outcome) for _, r in bench.producer.sent if isinstance(r, CuratedOutcome)]
    assert outcomes == [("weak", "evicted"), ("weaker", "below_threshold")]
    assert await bench.main.outbox(9) == []
