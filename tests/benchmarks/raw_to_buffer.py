"""Events/s of one process from the raw topic to the buffer with a free judge, beside the sum of its bare parts.

The bare parts of one event are each measured by themselves, as the library is used at its best and over the same bytes:
Faust takes a record three times, aiokafka sends one three times, three records are decoded and encoded, the libraries
of `ingest`'s rules are called, `rensa` makes a signature, Redis is asked whether the prompt was seen and takes a ZADD
and an HSET, both pipelined. As in `hop.py` a second is one of the process's processor time: what it does with a core
to itself.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from aiokafka import AIOKafkaProducer

from agents.rules.length import estimate, tokens_of
from agents.scored_log import BATCH
from deploy import intake
from streams.buffer.rank import member_key
from streams.buffer.redis import KEY_NAMES, generation_keys
from streams.producer import LINGER_MS
from streams.records import AcceptedPrompt, CuratedOutcome, RawPrompt, ScoredPrompt, decode, encode
from streams.redis_client import connect
from streams.settings import IngestSettings, RedisSettings
from tests.benchmarks import buffer, hop, near_duplicates
from tests.benchmarks.harness import Effort, Goal, Row, Spread, number, ratio, take_turns
from tests.benchmarks.load import raw_records, scored_prompt
from tests.benchmarks.services import Stack, accepted_records, cpu_seconds, fill, running_stack
from tests.support.stack import Process, Topics

GOAL_PER_S = 2_500


def measure(effort: Effort) -> list[Row]:
    """The ratio, and the plain number."""
    count = effort.pick(8_000, 300)
    parts: list[dict[str, float]] = []
    with running_stack() as stack:
        raw = raw_records(count, 1)

        def bare() -> float:
            parts.append(bare_parts(stack, raw))
            return 1 / sum(parts[-1].values())

        clock: list[float] = []

        def ours_() -> float:
            seconds, cpu_s = run(stack, raw)
            clock.append(count / seconds)
            return count / cpu_s

        found = take_turns({"haypile": ours_, "parts": bare}, effort.few_rounds, 0)
    told = ", ".join(f"{name} {number(seconds * 1e6)} µs" for name, seconds in parts[-1].items())
    ours = Spread(found["haypile"], "/s")
    return [
        Row(
            question="raw to buffer with a free judge",
            haypile=f"events/s of its core, one process, {count:,} prompts as long as the project's",
            against="the sum of the bare parts",
            goal=Goal(at_least=0.4),
            ours=ours,
            theirs=Spread(found["parts"], "/s"),
            measured=ratio(found["haypile"], found["parts"]),
            notes=(
                f"the bare parts of one event: {told}",
                f"by the clock, on the machine as busy as it was: {Spread(tuple(clock), '/s')}",
            ),
        ),
        Row(
            question="raw to buffer with a free judge",
            haypile="the same",
            against="",
            goal=Goal(at_least=GOAL_PER_S, unit="/s"),
            ours=ours,
            measured=ours,
        ),
    ]


def run(stack: Stack, raw: list[bytes]) -> tuple[float, float]:
    """Seconds from the first record taken to the last one in the buffer, of a new worker on a full topic: by the
    clock, and of its processor time."""
    topics = stack.topics()
    fill(topics, topics.names.raw, raw)
    worker = Process(["-m", "tests.benchmarks.free_worker"], stack.folder / f"{uuid4().hex}.log", stack.environ(topics))
    try:
        return asyncio.run(_seconds(stack, topics, worker, len(raw)))
    finally:
        worker.terminate(60)
        topics.delete()


async def _seconds(stack: Stack, topics: Topics, worker: Process, count: int) -> tuple[float, float]:
    """Looks at Redis: the mark of the first record taken, then how much of the scored topic is applied."""
    client = connect(RedisSettings(url=stack.redis_url))
    namespace = stack.namespace(topics)
    firsts = [f"{{{namespace}}}:attempts:ingest:start:{topics.names.raw}:{p}:0" for p in range(topics.kafka.partitions)]
    positions = generation_keys(namespace, "main", 1)[KEY_NAMES.index("positions")]
    started, cpu_s = 0.0, 0.0
    try:
        while True:
            if worker.popen.poll() is not None:
                raise RuntimeError(f"the worker ended: {worker.text()[-2000:]}")
            if not started and await client.exists(*firsts):
                started, cpu_s = time.perf_counter(), cpu_seconds(worker.popen.pid)
            if sum(int(offset) + 1 for offset in await client.hvals(positions)) >= count:
                return time.perf_counter() - started, cpu_seconds(worker.popen.pid) - cpu_s
            await asyncio.sleep(0.02)
    finally:
        await client.aclose()


def bare_parts(stack: Stack, raw: Sequence[bytes]) -> dict[str, float]:
    """Seconds an event of each part by itself."""
    accepted = accepted_records(raw)
    topics = stack.topics()
    fill(topics, topics.names.accepted, accepted)
    parts = {"Faust, three times": 3 / hop.rate("faust", stack, topics, len(accepted))["per_cpu_s"]}
    topics.delete()
    parts["aiokafka's producer, three times"] = 3 * asyncio.run(_produce(stack, accepted))
    prompts = [decode(AcceptedPrompt, value) for value in accepted]
    scored = [scored_prompt(p.id, p.messages[0].content, 5.5) for p in prompts]
    bodies = [encode(record) for record in scored]
    ends = [CuratedOutcome(id=p.id, outcome="below_threshold", rank_key=1.0, threshold=2.0, ts=1) for p in prompts]
    settings = IngestSettings()
    languages, redactor = intake.language_detector(settings), intake.redactor(settings)
    texts = [p.messages[0].content for p in prompts]

    def timed(name: str, part: Callable[[], object]) -> None:
        started = time.process_time()
        part()
        parts[name] = (time.process_time() - started) / len(raw)

    timed("three records decoded", lambda: _decode_all(raw, accepted, bodies))
    timed("three encoded", lambda: [encode(record) for record in (*prompts, *scored, *ends)])
    timed("length", lambda: [tokens_of(p.messages, estimate) for p in prompts])
    timed("language", lambda: [languages.detect(p.messages) for p in prompts])
    timed("redaction", lambda: [redactor.messages(p.messages) for p in prompts] if redactor else None)
    timed("signature", lambda: [near_duplicates.bare_signature(text) for text in texts])
    ids = [p.prompt_id for p in prompts]
    timed("Redis, seen before?", lambda: asyncio.run(_seen(stack, ids)))
    writes = [(1.0, member_key(p.id), body) for p, body in zip(prompts, bodies, strict=True)]
    timed("Redis, ZADD + HSET", lambda: asyncio.run(_write(stack, writes)))
    return parts


def _decode_all(raw: Sequence[bytes], accepted: Sequence[bytes], scored: Sequence[bytes]) -> None:
    for kind, values in ((RawPrompt, raw), (AcceptedPrompt, accepted), (ScoredPrompt, scored)):
        for value in values:
            decode(kind, value)


async def _produce(stack: Stack, values: Sequence[bytes]) -> float:
    topics = stack.topics()
    kafka = topics.kafka
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", linger_ms=LINGER_MS)
    await producer.start()
    started = time.process_time()
    for start in range(0, len(values), 500):
        for future in [await producer.send(topics.names.accepted, v) for v in values[start : start + 500]]:
            await future
    seconds = time.process_time() - started
    await producer.stop()
    topics.delete()
    return seconds / len(values)


async def _seen(stack: Stack, prompt_ids: Sequence[str]) -> None:
    client, prefix = connect(RedisSettings(url=stack.redis_url)), uuid4().hex
    for start in range(0, len(prompt_ids), BATCH):
        async with client.pipeline(transaction=False) as pipe:
            for prompt_id in prompt_ids[start : start + BATCH]:
                pipe.set(f"{prefix}{prompt_id[:32]}", "id", nx=True, get=True, ex=86_400)
            await pipe.execute()
    await client.aclose()


async def _write(stack: Stack, writes: Sequence[buffer.Write]) -> None:
    client = connect(RedisSettings(url=stack.redis_url))
    await buffer.write_all(client, uuid4().hex, writes)
    await client.aclose()
