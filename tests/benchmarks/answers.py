"""Generated tokens/s through `answer` beside the same requests from a bare client, on one vLLM.

Rewards are the judge's work, not the teacher's: here a fake gives them at once, so that only generating is compared.
In each round both answer the same prompts, but for a first word: vLLM has none of them in its prefix cache.
"""

import asyncio
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import aiohttp
from prometheus_client import CollectorRegistry

from agents.answer import Answer
from streams.buffer.base import BufferRules
from streams.buffer.redis import RedisBuffer
from streams.metrics import Metrics
from streams.redis_client import connect
from streams.rewards import Rewarder
from streams.rubric import RUBRIC
from streams.settings import AnswerSettings, RedisSettings, Settings
from streams.vllm import VllmPool
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.judged import client, generated
from tests.benchmarks.load import offers
from tests.benchmarks.services import running_valkey
from tests.support.stack import fake_vllm

K = 2
MAX_TOKENS = 32
RECORD_BYTES = 900
"""Prompts of some 80 tokens."""


def measure(effort: Effort) -> list[Row]:
    """Tokens/s, in turns; every run answers prompts of its own."""
    [url] = effort.vllm(1)
    prompts = effort.pick(48, 6)
    ours, theirs = count(9000), count(9000)
    with running_valkey() as valkey, TemporaryDirectory() as folder, fake_vllm(Path(folder)) as judge:
        values = take_turns(
            {
                "haypile": lambda: asyncio.run(_haypile(valkey.url, url, judge, prompts, next(ours))),
                "bare": lambda: asyncio.run(_bare(url, prompts, next(theirs))),
            },
            effort.rounds,
            0,
        )
    return [
        Row(
            question="answers",
            haypile=f"generated tokens/s through `answer`, {prompts} prompts, k {K}, up to {MAX_TOKENS} tokens each",
            against="the same requests from a bare client",
            goal=Goal(at_least=0.95),
            ours=Spread(values["haypile"], "/s"),
            theirs=Spread(values["bare"], "/s"),
            measured=ratio(values["haypile"], values["bare"]),
        )
    ]


def _settings() -> AnswerSettings:
    return AnswerSettings(k=K, max_tokens=MAX_TOKENS, when="admission")


async def _haypile(redis_url: str, teacher: str, judge: str, prompts: int, seed: int) -> float:
    """Tokens/s of `answer` over members that have no answers yet."""
    redis = connect(RedisSettings(url=redis_url))
    buffer = RedisBuffer(redis, uuid4().hex, "main", BufferRules(prompts))
    await buffer.offer(offers(prompts, seed, [5 + i / prompts for i in range(prompts)], RECORD_BYTES), [])
    settings = Settings(answer=_settings())
    async with _pool(teacher) as pool, _pool(judge) as judges:
        answer = Answer(
            settings.answer,
            buffer=buffer,
            teacher=pool,
            rewarder=Rewarder(judges, settings, RUBRIC),
            wanted=_never,
            metrics=Metrics(CollectorRegistry()),
        )
        stop = asyncio.Event()
        before, started = generated(teacher), time.perf_counter()
        task = asyncio.create_task(answer.run(stop))
        while (await buffer.stats()).answered < prompts:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        rate = (generated(teacher) - before) / (time.perf_counter() - started)
        stop.set()
        await task
    await redis.aclose()
    return rate


async def _bare(url: str, prompts: int, seed: int) -> float:
    """Tokens/s of the same requests with as many in flight."""
    left = iter(offers(prompts, seed, [5.0] * prompts, RECORD_BYTES))
    settings = _settings()

    async def work(session: aiohttp.ClientSession) -> None:
        for offer in left:
            body = {
                "model": settings.model,
                "messages": [{"role": m.role, "content": f"Again: {m.content}"} for m in offer.prompt.messages],
                "n": K,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_tokens": MAX_TOKENS,
            }
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                if len((await response.json())["choices"]) != K:
                    raise RuntimeError(f"{url} did not answer")

    before, started = generated(url), time.perf_counter()
    async with client() as session:
        await asyncio.gather(*(work(session) for _ in range(settings.concurrency)))
    return (generated(url) - before) / (time.perf_counter() - started)


def _pool(url: str) -> VllmPool:
    return VllmPool([url], concurrency=_settings().concurrency, timeout_s=_settings().timeout_s)


async def _never() -> bool:
    return False
