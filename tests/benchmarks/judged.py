"""A judge that only waits, bare clients that ask what `score` asks, and what a vLLM counts."""

import asyncio
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp

from deploy.local.processes import free_port, port_open
from streams.rubric import ASKED_OF_PROMPTS, Question, judge_prompts
from tests.support.stack import Process, wait_for


@contextmanager
def waiting_judge(folder: Path, delay_s: float) -> Iterator[str]:
    """A fake vLLM that answers every request after `delay_s`; yields its URL."""
    port = free_port()
    arguments = ["-m", "tests.support.fake_vllm", str(port), str(delay_s)]
    process = Process(arguments, folder / f"judge-{port}.log")
    try:
        wait_for("the judge", lambda: port_open(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A bare client without a bound of connections."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        yield session


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    text: str,
    model: str = "judge",
    questions: Sequence[Question] = ASKED_OF_PROMPTS,
) -> float:
    """The request of one rating; seconds until its answer."""
    prompts = judge_prompts(text)
    body = {
        "model": model,
        "prompt": [prompts[question] for question in questions],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 20,
    }
    started = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        answer = await response.json()
        if len(answer["choices"]) != len(questions):
            raise RuntimeError(f"{url} answered {answer}")
    return time.perf_counter() - started


async def ask_all(
    url: str, texts: Sequence[str], concurrency: int, questions: Sequence[Question] = ASKED_OF_PROMPTS
) -> list[float]:
    """The moment (`time.perf_counter`) of each answer, with so many requests in flight."""
    left = iter(texts)
    times = []

    async def work(session: aiohttp.ClientSession) -> None:
        for text in left:
            await ask(session, url, text, questions=questions)
            times.append(time.perf_counter())

    async with client() as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
    return times


async def ask_at_rate(url: str, texts: Sequence[str], per_s: float, seed: int) -> list[float]:
    """Seconds of each request when they arrive at random (Poisson) moments."""
    async with client() as session:
        tasks = []
        for text, pause in zip(texts, pauses(len(texts), per_s, seed), strict=True):
            await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(ask(session, url, text)))
        return list(await asyncio.gather(*tasks))


def pauses(count: int, per_s: float, seed: int) -> list[float]:
    """Seconds before each arrival of a Poisson process."""
    rng = random.Random(seed)
    return [rng.expovariate(per_s) for _ in range(count)]


def counter(url: str, name: str) -> float:
    """The sum of a counter `vllm:name` over its labels; 0 where the server (a fake) has no such thing."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
            text = response.read().decode()
    except urllib.error.HTTPError:
        return 0.0
    pattern = rf"^vllm:{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$"
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def generated(url: str) -> float:
    """Tokens generated since the server started."""
    return counter(url, "generation_tokens_total")
