"""What an error in a handler means for its record."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client import CollectorRegistry

from agents.hop import Hop
from agents.rules.dead_letter_limit import LEAST, SPAN, DeadLetterLimit
from streams.app import Inbound
from streams.batcher import Batcher
from streams.errors import Fatal, InvalidRecord, Transient
from streams.metrics import Metrics
from streams.records import DeadLetter, encode
from streams.settings import TracingSettings
from streams.tracing import Tracing

RECORD = Inbound("prompts.raw", 1, 2, b"\xff bytes", 0, (("traceparent", b"00-1"),))


class Producer:
    """Takes records; the first `failures` sends fail."""

    def __init__(self, failures: int = 0) -> None:
        self.sent: list[tuple[str, msgspec.Struct, object]] = []
        self.failures = failures

    async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
        if self.failures:
            self.failures -= 1
            raise Transient("broker away")
        self.sent.append((topic, record, headers))


ATTEMPTS = 3


class NoPoison:
    async def suspects(self, record: Inbound) -> bool:
        return False


def make(handle: Callable[[Inbound], Awaitable[str]], producer: Producer) -> tuple[Hop, Metrics, list[BaseException]]:
    metrics = Metrics(CollectorRegistry())
    fatal: list[BaseException] = []
    hop = Hop(
        "ingest",
        handle,
        producer=producer,  # type: ignore[arg-type]
        dead_topic="prompts.dead",
        metrics=metrics,
        poison=NoPoison(),  # type: ignore[arg-type]
        limit=DeadLetterLimit(0.5),
        attempts=ATTEMPTS,
        tracing=Tracing(TracingSettings()),
        on_fatal=fatal.append,
        now_ms=lambda: 42,
    )
    return hop, metrics, fatal


def count(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def test_an_invalid_record_becomes_a_dead_letter_with_its_bytes_also_when_the_broker_is_away_first() -> None:
    async def handle(record: Inbound) -> str:
        raise InvalidRecord("not_utf8", "no")

    producer = Producer(failures=2)
    hop, metrics, _ = make(handle, producer)
    await hop(RECORD)
    [(topic, letter, headers)] = producer.sent
    assert topic == "prompts.dead"
    assert letter == DeadLetter(
        reason="not_utf8", error="no", topic="prompts.raw", partition=1, offset=2, value=b"\xff bytes", ts=42
    )
    assert headers == [("traceparent", b"00-1")]
    assert metrics.health.degraded == [], "the broker's outage is over"
    assert count(metrics, "haypile_dead_letters_total", hop="ingest", reason="not_utf8") == 1


async def test_an_outage_is_waited_out_and_never_a_dead_letter() -> None:
    calls = 0

    async def handle(record: Inbound) -> str:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise Transient("vLLM is down")
        return "scored"

    producer = Producer()
    hop, metrics, _ = make(handle, producer)
    await hop(RECORD)
    assert producer.sent == []
    assert count(metrics, "haypile_records_total", hop="ingest", outcome="scored") == 1
    assert count(metrics, "haypile_retries_total", hop="ingest") == 3


async def test_a_defect_is_diverted_after_its_attempts() -> None:
    calls = 0

    async def handle(record: Inbound) -> str:
        nonlocal calls
        calls += 1
        raise KeyError("surprise")

    producer = Producer()
    hop, _, fatal = make(handle, producer)
    await hop(RECORD)
    assert calls == ATTEMPTS
    assert isinstance(producer.sent[0][1], DeadLetter)
    assert producer.sent[0][1].reason == "unexpected"
    assert fatal == []


async def test_an_error_whose_text_is_no_utf_8_still_becomes_a_dead_letter() -> None:
    async def handle(record: Inbound) -> str:
        raise KeyError("\ud800")

    producer = Producer()
    hop, _, fatal = make(handle, producer)
    await hop(RECORD)
    assert b"\\\\ud800" in encode(producer.sent[0][1])
    assert fatal == []


async def test_a_record_too_large_for_the_dead_letters_leaves_a_letter_that_says_where_it_is() -> None:
    async def handle(record: Inbound) -> str:
        raise InvalidRecord("too_large", "9 bytes are over ingest.max_bytes")

    class Small(Producer):
        async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
            if getattr(record, "value", b""):
                raise InvalidRecord("too_large", "kafka.max_message_bytes")
            await super().send(topic, record, key, headers)

    producer = Small()
    hop, _, fatal = make(handle, producer)
    await hop(RECORD)
    [(_, letter, _)] = producer.sent
    assert isinstance(letter, DeadLetter)
    assert (letter.topic, letter.partition, letter.offset) == ("prompts.raw", 1, 2)
    assert (letter.value, letter.left_out) == (b"", len(RECORD.value))
    assert "in the source topic only" in letter.error
    assert fatal == [], "one large record does not stop the stream"


async def test_fatal_stops_the_process_and_the_record_is_never_done() -> None:
    async def handle(record: Inbound) -> str:
        raise Fatal("wrong key")

    hop, _, fatal = make(handle, Producer())
    task = asyncio.create_task(hop(RECORD))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert [str(error) for error in fatal] == ["wrong key"]
    assert not task.done(), "done would mean acked"
    task.cancel()


async def test_batches_keep_the_order_grow_with_the_load_and_hand_errors_to_every_waiter() -> None:
    batches: list[list[int]] = []

    async def flush(items: list[int]) -> list[int]:
        batches.append(list(items))
        await asyncio.sleep(0.01)
        if 13 in items:
            raise Transient("down")
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(flush, most=5)  # type: ignore[arg-type]
    results = await asyncio.gather(*(batcher.add(i) for i in range(12)))
    assert results == [i * 10 for i in range(12)]
    assert [item for batch in batches for item in batch] == list(range(12))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    errors = await asyncio.gather(batcher.add(13), batcher.add(14), return_exceptions=True)
    assert [type(error) for error in errors] == [Transient, Transient]
    assert await batcher.add(15) == 150


async def test_when_too_many_are_diverted_the_process_stops() -> None:
    async def handle(record: Inbound) -> str:
        if record.offset % 10 < 6:
            raise InvalidRecord("not_json", "no")
        return "accepted"

    hop, _, fatal = make(handle, Producer())
    tasks = [asyncio.ensure_future(hop(_at(i))) for i in range(LEAST)]
    await asyncio.sleep(0.5)
    assert len(fatal) == 1
    assert "worker.max_dead_share" in str(fatal[0])
    for task in tasks:
        task.cancel()


def _at(offset: int) -> Inbound:
    return Inbound("prompts.raw", 0, offset, b"x", 0, ())


def test_the_share_is_that_of_the_last_records() -> None:
    limit = DeadLetterLimit(0.5)
    for _ in range(LEAST - 1):
        limit.count(True)
    assert not limit.exceeded, "too few to say"
    limit.count(True)
    assert limit.exceeded
    for _ in range(SPAN):
        limit.count(False)
    assert not limit.exceeded
    for i in range(SPAN):
        limit.count(i % 2 == 0)
    assert not limit.exceeded, "half is the limit, not above it"
    none = DeadLetterLimit(1)
    for _ in range(SPAN):
        none.count(True)
    assert not none.exceeded
