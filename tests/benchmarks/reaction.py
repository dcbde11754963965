"""How long a prompt takes from Kafka to the buffer at half load, beside what the judge takes.

The judge only waits, as long as a rating by a model of some billion parameters on a GPU takes. Half load is half of
what the worker does when all prompts are there at once; then they arrive at random moments (Poisson). A prompt has
arrived when its outcome can be read from `prompts.curated`: that is later than its being in the buffer.
"""

import asyncio
import json
import time
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.benchmarks.harness import Effort, Goal, Row, Spread, number, percentile, ratio, steady_rate, take_turns
from tests.benchmarks.judged import ask_at_rate, pauses, waiting_judge
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import running_stack
from tests.support.stack import Topics, Worker, wait_for

JUDGE_S = 0.1
FEW_PER_S = 10.0
"""So few that records hardly meet."""


def measure(effort: Effort) -> list[Row]:
    """p99 of both, in turns, one worker."""
    with running_stack() as stack, waiting_judge(stack.folder, JUDGE_S) as url:
        topics = stack.topics()
        environ = stack.environ(topics, HAYPILE_JUDGE__URLS=json.dumps([url]))
        del environ["HAYPILE_WORKER__METRICS_PORT"]
        worker = Worker(stack.folder, "worker", "ingest,score,curate", environ)
        medians: list[float] = []
        seeds = iter(range(1000))

        def ours() -> float:
            seconds = asyncio.run(_through(topics, raw_records(count, next(seeds)), per_s))
            medians.append(percentile(seconds, 0.5) * 1000)
            return percentile(seconds, 0.99) * 1000

        def theirs() -> float:
            seed = next(seeds)
            texts = [json.loads(value)["prompt"] for value in raw_records(count, seed)]
            return percentile(asyncio.run(ask_at_rate(url, texts, per_s, seed)), 0.99) * 1000

        try:
            topics.send(raw_records(50, 1000))
            wait_for("the worker is at work", lambda: worker.handled("curate") >= 50, 120)
            most = steady_rate(asyncio.run(_at_once(topics, raw_records(effort.pick(2_000, 100), 1001))))
            per_s = most / 2
            count = effort.pick(int(10 * per_s), 20)
            values = take_turns({"haypile": ours, "judge": theirs}, effort.few_rounds, effort.pick(1, 0))
            few = asyncio.run(_through(topics, raw_records(effort.pick(200, 20), next(seeds)), FEW_PER_S))
            worker.terminate(60)
        finally:
            worker.kill()
    return [
        Row(
            question="reaction",
            haypile=f"p99 from Kafka to buffer at half load ({per_s:.0f} of {most:.0f} a second)",
            against="the judge's own p99 at that load",
            goal=Goal(at_most=2.5),
            ours=Spread(values["haypile"], "ms"),
            theirs=Spread(values["judge"], "ms"),
            measured=ratio(values["haypile"], values["judge"]),
            notes=(
                f"median {number(percentile(medians, 0.5))} ms; the judge waits {JUDGE_S * 1000:.0f} ms; with "
                f"{FEW_PER_S:.0f} records a second the median is {number(percentile(few, 0.5) * 1000)} ms, p99 "
                f"{number(percentile(few, 0.99) * 1000)} ms",
            ),
        )
    ]


async def _through(topics: Topics, records: Sequence[bytes], per_s: float) -> list[float]:
    """Seconds from handing each record to the producer to its outcome."""
    return [arrived - sent for sent, arrived in await _follow(topics, records, pauses(len(records), per_s, 1))]


async def _at_once(topics: Topics, records: Sequence[bytes]) -> list[float]:
    """The moment of each outcome, when all records are sent at once."""
    return [arrived for _, arrived in await _follow(topics, records, [0.0] * len(records))]


async def _follow(topics: Topics, records: Sequence[bytes], waits: Sequence[float]) -> list[tuple[float, float]]:
    """When each record was handed to the producer, and its outcome read; `waits` are the pauses before them."""
    kafka = topics.kafka
    consumer = AIOKafkaConsumer(
        topics.names.curated, bootstrap_servers=kafka.bootstrap, auto_offset_reset="latest", fetch_max_wait_ms=20
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=0)
    await consumer.start()
    await consumer.seek_to_end()
    await producer.start()
    sent: dict[str, float] = {}
    times: list[tuple[float, float]] = []

    async def listen() -> None:
        async for message in consumer:
            outcome = json.loads(message.value or b"{}")
            if outcome["outcome"] != "evicted" and outcome["id"] in sent:
                times.append((sent.pop(outcome["id"]), time.perf_counter()))
                if len(times) == len(records):
                    return

    listener = asyncio.create_task(listen())
    for number_, (value, pause) in enumerate(zip(records, waits, strict=True)):
        await asyncio.sleep(pause)
        sent[json.loads(value)["id"]] = time.perf_counter()
        await producer.send(topics.names.raw, value, partition=number_ % kafka.partitions)
    await asyncio.wait_for(listener, 120)
    await consumer.stop()
    await producer.stop()
    return times
