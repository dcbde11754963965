"""From a verdict to the adapter serving on two servers, beside what vLLM takes for the same.

The bare client loads a copy of the same adapter under a name of its own on both servers at once, and asks each for one
token: an adapter that was never asked is not in the engine yet. Promotion does the same, and checks digests, moves the
pointer and unloads the old one. After a gate the challenger is loaded already: that is told beside. The canary is held
against a bare client that asks the canary's questions: it takes what vLLM takes to answer them.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from deploy.local.vllm import JUDGE
from streams.settings import ServingSettings
from tests.benchmarks.harness import Effort, Goal, Row, Spread, ratio, take_turns
from tests.benchmarks.judged import client
from trainers.promotion import PROBE, Servers, move
from trainers.registry import Registry

NO_RECIPE: dict[str, object] = {}
GOAL = Goal(at_most=1.5)


def measure(effort: Effort) -> list[Row]:
    """Seconds of each, in turns; every run has an adapter that no server knows."""
    urls = effort.vllm(2)
    checked = ServingSettings(urls=urls)
    serving = checked.model_copy(update={"canary": []})
    numbers = count(1)
    after_gate: list[float] = []
    with TemporaryDirectory(prefix="haypile-bench-") as name:
        registry = Registry(Path(name) / "registry")

        def promoted() -> float:
            version = _publish(registry, f"run-{next(numbers)}")
            seconds = asyncio.run(_promote(serving, registry, version, loaded=False))
            again = _publish(registry, f"run-{next(numbers)}")
            after_gate.append(asyncio.run(_promote(serving, registry, again, loaded=True)))
            return seconds

        def with_canary() -> float:
            return asyncio.run(_promote(checked, registry, _publish(registry, f"run-{next(numbers)}"), loaded=False))

        def bare(questions: Sequence[str]) -> float:
            copy = Path(name) / f"bare-{next(numbers)}"
            shutil.copytree(JUDGE, copy)
            return asyncio.run(_load(urls, copy, checked, questions))

        values = take_turns(
            {
                "haypile": promoted,
                "bare": lambda: bare([]),
                "with canary": with_canary,
                "bare, asking": lambda: bare(checked.canary),
            },
            effort.few_rounds,
            1,
        )
    asked = f"{len(checked.canary)} prompts, answers of up to {checked.canary_tokens} tokens, by adapter and base"
    return [
        Row(
            question="reaction",
            haypile="end of gate to adapter serving on two servers, if neither has it yet, the canary aside",
            against="vLLM's own load time, both at once, and a token of each",
            goal=GOAL,
            ours=Spread(values["haypile"], "s"),
            theirs=Spread(values["bare"], "s"),
            measured=ratio(values["haypile"], values["bare"]),
            notes=(f"where the gate has loaded it: {Spread(tuple(after_gate), 's')}",),
        ),
        Row(
            question="reaction",
            haypile=f"the same with the canary ({asked})",
            against="a bare client that loads it and asks the same",
            goal=GOAL,
            ours=Spread(values["with canary"], "s"),
            theirs=Spread(values["bare, asking"], "s"),
            measured=ratio(values["with canary"], values["bare, asking"]),
        ),
    ]


def _publish(registry: Registry, run_id: str) -> str:
    manifest = registry.publish(
        JUDGE,
        run_id=run_id,
        snapshot="none",
        base_model="SmolLM2-135M-Instruct",
        parent=None,
        recipe=dict(NO_RECIPE),
        judge=None,
        metrics={},
        now_ms=1,
    )
    return manifest.version


async def _promote(serving: ServingSettings, registry: Registry, version: str, *, loaded: bool) -> float:
    async with Servers(serving) as servers:
        if loaded:
            await servers.load(registry, version)
        started = time.perf_counter()
        await move(servers, registry, version, reason="measured", by="benchmark")
        return time.perf_counter() - started


async def _load(urls: list[str], adapter: Path, serving: ServingSettings, questions: Sequence[str]) -> float:
    async def chat(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            await response.read()

    async def ask(session: aiohttp.ClientSession, url: str, question: str) -> None:
        for model in (serving.model, adapter.name):
            body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0.0}
            await chat(session, url, {**body, "max_tokens": serving.canary_tokens, "logprobs": True})

    async def load_one(session: aiohttp.ClientSession, url: str) -> None:
        body = {"lora_name": adapter.name, "lora_path": str(adapter)}
        async with session.post(f"{url}/v1/load_lora_adapter", json=body) as response:
            response.raise_for_status()
        await chat(session, url, {"model": adapter.name, "messages": PROBE, "max_tokens": 1})
        await asyncio.gather(*(ask(session, url, question) for question in questions))

    async with client() as session:
        started = time.perf_counter()
        await asyncio.gather(*(load_one(session, url) for url in urls))
        seconds = time.perf_counter() - started
        for url in urls:
            await session.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": adapter.name})
    return seconds
