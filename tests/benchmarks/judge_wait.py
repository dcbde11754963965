"""Does the judge ever wait for us? Ratings/s from the raw topic to the buffer beside a bare client's, on one vLLM.

The bare client is tried with several numbers of requests in flight. With the one that it does best with both are
measured: `judge.concurrency` is what an operator would set it to. In each round both rate the same prompts, but for a
first word, so that vLLM has none of them in its prefix cache. Neither start nor tail of a run counts.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from itertools import count

from aiokafka import AIOKafkaConsumer

from tests.benchmarks.harness import Effort, Goal, Row, Spread, number, ratio, steady_rate, take_turns
from tests.benchmarks.judged import ask_all
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import Stack, running_stack
from tests.support.stack import Topics, Worker, wait_for

CONCURRENCIES = (4, 8, 16, 32)


def measure(effort: Effort) -> list[Row]:
    """One worker and a bare client, in turns, on the same server."""
    [url] = effort.vllm(1)
    prompts = effort.pick(80, 20)
    ours, theirs = count(1), count(1)
    with running_stack() as stack:

        def texts(seed: int, first_word: str) -> list[str]:
            return [f"{first_word} {json.loads(value)['prompt']}" for value in raw_records(prompts, seed)]

        def bare(seed: int, concurrency: int, first_word: str = "Again:") -> float:
            return steady_rate(asyncio.run(ask_all(url, texts(seed, first_word), concurrency)))

        asyncio.run(ask_all(url, texts(0, "First:")[:20], 8))
        tried = {c: bare(0, c, f"{c}:") for c in (CONCURRENCIES[:1] if effort.quick else CONCURRENCIES)}
        best = max(tried, key=lambda concurrency: tried[concurrency])
        topics = stack.topics()
        worker = _worker(stack, topics, url, best)
        try:
            topics.send(raw_records(8, 1000))
            wait_for("the worker is at work", lambda: worker.handled("curate") >= 8, 120)
            values = take_turns(
                {
                    "haypile": lambda: steady_rate(asyncio.run(_through(topics, raw_records(prompts, next(ours))))),
                    "bare": lambda: bare(next(theirs), best),
                },
                effort.few_rounds,
                0,  # the server is warm
            )
            worker.terminate(60)
        finally:
            worker.kill()
    told = ", ".join(f"{number(rate)}/s with {concurrency}" for concurrency, rate in tried.items())
    return [
        Row(
            question="does the judge's GPU (here: vLLM on the CPU) ever wait for us?",
            haypile="ratings/s, raw topic to buffer",
            against=f"the same requests from a bare client, both with {best} in flight, its best",
            goal=Goal(at_least=0.97),
            ours=Spread(values["haypile"], "/s"),
            theirs=Spread(values["bare"], "/s"),
            measured=ratio(values["haypile"], values["bare"]),
            notes=(f"the bare client tried {told}",),
        )
    ]


def _worker(stack: Stack, topics: Topics, url: str, concurrency: int) -> Worker:
    judge = {"URLS": json.dumps([url]), "CONCURRENCY": str(concurrency), "TIMEOUT_S": "300"}
    environ = stack.environ(topics, **{f"HAYPILE_JUDGE__{name}": value for name, value in judge.items()})
    del environ["HAYPILE_WORKER__METRICS_PORT"]
    return Worker(stack.folder, "worker", "ingest,score,curate", environ)


async def _through(topics: Topics, records: Sequence[bytes]) -> list[float]:
    """The moment of each record's outcome."""
    consumer = AIOKafkaConsumer(
        topics.names.curated, bootstrap_servers=topics.kafka.bootstrap, auto_offset_reset="latest", fetch_max_wait_ms=20
    )
    await consumer.start()
    await consumer.seek_to_end()
    await asyncio.to_thread(topics.send, records)
    left = {json.loads(value)["id"] for value in records}
    times: list[float] = []
    async with asyncio.timeout(600):
        async for message in consumer:
            outcome = json.loads(message.value or b"{}")
            if outcome["outcome"] != "evicted" and outcome["id"] in left:
                left.remove(outcome["id"])
                times.append(time.perf_counter())
                if not left:
                    break
    await consumer.stop()
    return times
