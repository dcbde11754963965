"""What the framework costs: one hop beside Faust and aiokafka by themselves. Each run is a process of its own.

A hop that has work all the time is bound by its one core, so events/s are those of a second of the process's
processor time: what it does with a core to itself, however busy the machine is. By the clock is told beside.

`python -m tests.benchmarks.hop CONTESTANT SOURCE TARGET COUNT` handles COUNT records of SOURCE and prints both, from
the first to the last; the broker is that of the settings.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import Stack, accepted_records, fill, report_of, running_stack
from tests.support.stack import Topics


def measure(effort: Effort) -> list[Row]:
    """A hop that decodes, works in its window and produces, against Faust's consuming alone."""
    count = effort.pick(20_000, 300)
    with running_stack() as stack:
        values = accepted_records(raw_records(count, 1))
        topics = stack.topics()
        fill(topics, topics.names.accepted, values)
        by_clock: dict[str, list[float]] = {"haypile": [], "faust": [], "aiokafka": []}

        def run(name: str) -> float:
            report = rate(name, stack, topics, count)
            by_clock[name].append(report["per_s"])
            return report["per_cpu_s"]

        found = take_turns(
            {name: lambda name=name: run(name) for name in by_clock},  # type: ignore[misc]
            effort.few_rounds,
            0,  # every run is a new process: nothing is warm
        )
    clock = ", ".join(f"{name} {Spread(tuple(rates), '/s')}" for name, rates in by_clock.items())
    return [
        Row(
            question="what does the framework cost?",
            haypile="one hop (consume, decode, window, produce), one process, events/s of its core",
            against="bare Faust, consume and ack only",
            goal=Goal(at_least=0.6),
            ours=Spread(found["haypile"], "/s"),
            theirs=Spread(found["faust"], "/s"),
            measured=ratio(found["haypile"], found["faust"]),
            notes=(
                f"bare aiokafka, consume and produce: {Spread(found['aiokafka'], '/s')}",
                f"by the clock, on the machine as busy as it was: {clock}",
            ),
        )
    ]


def rate(contestant: str, stack: Stack, topics: Topics, count: int) -> dict[str, float]:
    """Events/s of one run over the `count` records of `prompts.accepted`, in a group of its own."""
    environ = stack.environ(topics, HAYPILE_KAFKA__GROUP=uuid4().hex)
    module = "tests.benchmarks.hop"
    return report_of(module, contestant, topics.names.accepted, topics.names.scored, count, environ=environ)


class Meter:
    """Counts; `done` is set with the last one."""

    def __init__(self, count: int) -> None:
        self._left = self._count = count
        self._started = (0.0, 0.0)
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self.done = asyncio.Event()

    def one(self) -> None:
        if self._left == self._count:
            self._started = time.perf_counter(), time.process_time()
        self._left -= 1
        if self._left == 0:
            self.seconds = time.perf_counter() - self._started[0]
            self.cpu_seconds = time.process_time() - self._started[1]
            self.done.set()

    def report(self) -> dict[str, float]:
        """Events a second by the clock, and of processor time."""
        return {"per_s": (self._count - 1) / self.seconds, "per_cpu_s": (self._count - 1) / self.cpu_seconds}


async def haypile(source: str, target: str, count: int) -> Meter:
    """The real frame of a hop with a handler that passes the record on."""
    from prometheus_client import CollectorRegistry

    from agents.hop import Hop
    from agents.poison import Poison
    from agents.rules.dead_letter_limit import DeadLetterLimit
    from streams.app import Inbound, create_app
    from streams.metrics import Metrics
    from streams.producer import Producer
    from streams.records import AcceptedPrompt, decode
    from streams.redis_client import connect
    from streams.settings import load_settings
    from streams.tracing import Tracing

    settings = load_settings()
    meter = Meter(count)
    client = connect(settings.redis)
    async with Producer(settings.kafka) as producer:

        async def handle(record: Inbound) -> str:
            prompt = decode(AcceptedPrompt, record.value)
            await producer.send(target, prompt, key=prompt.id, headers=list(record.headers))
            meter.one()
            return "passed"

        worker = settings.worker
        hop = Hop(
            "hop",
            handle,
            producer=producer,
            dead_topic=f"{target}.dead",
            metrics=Metrics(CollectorRegistry()),
            poison=Poison(client, settings.redis.namespace, "hop", worker.window, worker.max_attempts),
            limit=DeadLetterLimit(worker.max_dead_share),
            attempts=worker.max_attempts,
            tracing=Tracing(settings.tracing),
            on_fatal=_fail,
            now_ms=lambda: int(time.time() * 1000),
        )
        hops = create_app(settings)
        hops.attach("hop", source, worker.window, hop, _fail)
        await hops.app.start()
        await meter.done.wait()
        await hops.app.stop()
    await client.aclose()
    return meter


async def faust(source: str, target: str, count: int) -> Meter:
    """Faust as it comes, one agent that only acks."""
    from faust import App

    from streams.settings import load_settings

    settings = load_settings()
    meter = Meter(count)
    app = App(
        settings.kafka.group,
        env_prefix="BARE_",
        broker=f"kafka://{settings.kafka.bootstrap}",
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        broker_session_timeout=settings.kafka.session_timeout_s,
        broker_heartbeat_interval=1.0,
        consumer_auto_offset_reset="earliest",
    )

    async def run(stream: Any) -> None:
        records = stream.noack()
        async for event in records.events():
            await records.ack(event)
            meter.one()

    app.agent(app.topic(source, key_serializer="raw", value_serializer="raw"), name="bare", concurrency=1)(run)
    await app.start()
    await meter.done.wait()
    await app.stop()
    return meter


async def aiokafka(source: str, target: str, count: int) -> Meter:
    """aiokafka by itself: a fetch is sent on as a whole, then committed."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    from streams.producer import LINGER_MS
    from streams.settings import load_settings

    kafka = load_settings().kafka
    meter = Meter(count)
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=kafka.bootstrap,
        group_id=kafka.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=int(kafka.session_timeout_s * 1000),
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=LINGER_MS, enable_idempotence=kafka.idempotence
    )
    await consumer.start()
    await producer.start()
    while not meter.done.is_set():
        batches = await consumer.getmany(timeout_ms=500, max_records=500)
        sent = [await producer.send(target, m.value, key=m.key) for batch in batches.values() for m in batch]
        for future in sent:
            await future
            meter.one()
        if sent:
            await consumer.commit()
    await consumer.stop()
    await producer.stop()
    return meter


def _fail(error: BaseException) -> None:
    raise SystemExit(f"benchmark: {error!r}")


CONTESTANTS: dict[str, Callable[[str, str, int], Awaitable[Meter]]] = {
    "haypile": haypile,
    "faust": faust,
    "aiokafka": aiokafka,
}


def main(contestant: str, source: str, target: str, count: str) -> None:
    async def body() -> Meter:
        return await CONTESTANTS[contestant](source, target, int(count))

    print(json.dumps(asyncio.run(body()).report()))


if __name__ == "__main__":
    main(*sys.argv[1:])
