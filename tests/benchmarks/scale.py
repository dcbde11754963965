"""One worker and two on two cores, more partitions than workers, with a judge that only waits.

What a worker can do is then bounded by its requests in flight (`judge.concurrency`), as it is with a real judge.
"""

import asyncio
import json
import time
from uuid import uuid4

from streams.buffer.redis import KEY_NAMES, generation_keys
from streams.redis_client import connect
from streams.settings import JudgeSettings, RedisSettings
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.judged import waiting_judge
from tests.benchmarks.load import raw_records
from tests.benchmarks.services import Stack, fill, running_stack
from tests.support.stack import Topics, Worker, wait_for

JUDGE_S = 0.2
PARTITIONS = 8
MOST_WAKES = 60


def measure(effort: Effort) -> list[Row]:
    """Events/s of both, in turns."""
    count = effort.pick(4_000, 300)
    with running_stack() as stack, waiting_judge(stack.folder, JUDGE_S) as url:
        raw = raw_records(count, 1)
        values = take_turns(
            {"two": lambda: per_s(stack, url, raw, 2), "one": lambda: per_s(stack, url, raw, 1)},
            effort.few_rounds,
            0,  # nothing is warm: every run has new workers
        )
    bound = JudgeSettings().concurrency / JUDGE_S
    return [
        Row(
            question="scale",
            haypile=f"events/s of 2 workers on {PARTITIONS} partitions, a judge that waits {JUDGE_S * 1000:.0f} ms",
            against="1 worker",
            goal=Goal(at_least=1.7),
            ours=Spread(values["two"], "/s"),
            theirs=Spread(values["one"], "/s"),
            measured=ratio(values["two"], values["one"]),
            notes=(f"`judge.concurrency` bounds one worker at {bound:.0f}/s",),
        )
    ]


def per_s(stack: Stack, url: str, raw: list[bytes], workers: int) -> float:
    """Events/s of so many new workers, between the first tenth and the last: joining does not count."""
    topics = stack.topics(PARTITIONS)
    environ = stack.environ(topics, HAYPILE_JUDGE__URLS=json.dumps([url]))
    del environ["HAYPILE_WORKER__METRICS_PORT"]
    name = uuid4().hex[:8]
    started = [Worker(stack.folder, f"{name}-{i}", "ingest,score,curate", environ) for i in range(workers)]
    try:
        # All share the partitions before the load comes: each has handled some of what is sent to wake them.
        woken = 0
        while not all(worker.handled("score") for worker in started):
            if woken == MOST_WAKES:
                raise RuntimeError(f"{workers} workers do not share {PARTITIONS} partitions after {woken} s")
            woken += 1
            topics.send(raw_records(2 * PARTITIONS, 1000 + woken))
            time.sleep(1)
        before = 2 * PARTITIONS * woken
        wait_for("the first are done", lambda: asyncio.run(applied(stack, topics)) >= before, 60)
        fill(topics, topics.names.raw, raw)
        return asyncio.run(_per_s(stack, topics, before, before + len(raw)))
    finally:
        for worker in started:
            worker.signal(15)
        for worker in started:
            worker.popen.wait(60)
        topics.delete()


async def _per_s(stack: Stack, topics: Topics, first: int, last: int) -> float:
    """Records applied a second between a tenth and nine tenths of the way."""
    loop = asyncio.get_running_loop()
    begin, end = first + (last - first) // 10, last - (last - first) // 10
    marks: list[tuple[float, int]] = []
    while True:
        done = await applied(stack, topics)
        if done >= begin and not marks:
            marks.append((loop.time(), done))
        if done >= end:
            started, before = marks[0]
            return (done - before) / (loop.time() - started)
        await asyncio.sleep(0.1)


async def applied(stack: Stack, topics: Topics) -> int:
    """Records of the scored topic that are in the buffer, or refused by it."""
    client = connect(RedisSettings(url=stack.redis_url))
    try:
        key = generation_keys(stack.namespace(topics), "main", 1)[KEY_NAMES.index("positions")]
        return sum(int(offset) + 1 for offset in await client.hvals(key))
    finally:
        await client.aclose()
