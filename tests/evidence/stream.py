"""The stream: prompts with one answer each, what the judge says of them, and who gets which."""

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.errors import SettingsError
from tests.curation.corpus import LABELLED, rows_of
from tests.curation.rated import difficulties
from tests.evidence.experiment import Arm, Experiment

CALCULATION = re.compile(r"<<[^>]*>>")
"""GSM8K's notes for a calculator."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the stream with its answer."""

    text: str
    answer: str
    difficulty: float

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Stream:
    """What the arms choose from, and what they are measured on."""

    offered: list[Prompt]
    hard: list[Prompt]
    """Measured on: the hardest of those set aside."""
    other: list[Prompt]
    """Measured on: a draw of the rest of them."""


def read_stream(experiment: Experiment) -> Stream:
    """Read, rated and divided. Raises `SettingsError` where there is no stream or too little of it."""
    pairs = dict(_file(experiment.stream) if experiment.stream else _shared())
    texts = sorted(pairs, key=lambda text: hashlib.sha256(f"stream:{text}".encode()).digest())[: experiment.prompts]
    rated = difficulties(texts) if experiment.judge == "demo" else asyncio.run(_by_vllm(texts))
    prompts = [Prompt(text, pairs[text], value) for text, value in zip(texts, rated, strict=True)]
    aside = [p for p in prompts if int(p.id[:8], 16) < experiment.aside * 2**32]
    aside.sort(key=lambda p: (-p.difficulty, p.id))
    offered = [p for p in prompts if int(p.id[:8], 16) >= experiment.aside * 2**32]
    half = experiment.held_out // 2
    if len(offered) < 2 * experiment.k or len(aside) < 2 * experiment.held_out:
        raise SettingsError(
            f"evidence: of {len(prompts)} prompts {len(aside)} are set aside; k {experiment.k} needs "
            f"{2 * experiment.k} others and held_out {experiment.held_out} needs {2 * experiment.held_out}"
        )
    rest = random.Random(5).sample(aside[half:], experiment.held_out - half)
    return Stream(offered, aside[:half], rest)


def chosen(arm: Arm, prompts: Sequence[Prompt], k: int, seed: int) -> list[Prompt]:
    """The k prompts of an arm, but for `curated`: that is the buffer's choice."""
    if arm == "longest":
        return sorted(prompts, key=lambda p: (-len(p.text), p.id))[:k]
    return random.Random(seed).sample(list(prompts), k)


def _shared() -> Iterator[tuple[str, str]]:
    missing = [str(file.name) for file, _ in (LABELLED["gsm8k"], LABELLED["self-instruct"]) if not file.exists()]
    if missing:
        raise SettingsError(
            f"evidence: {' and '.join(missing)} (prompts with answers) are not in ../shared/data; name a file of your "
            "own with `stream:` in the experiment"
        )
    for row in rows_of(LABELLED["gsm8k"][0]):
        yield row["question"], CALCULATION.sub("", row["answer"])
    for row in rows_of(LABELLED["self-instruct"][0]):
        instance = row["instances"][0]
        yield f"{row['instruction']}\n{instance['input']}".strip(), instance["output"].strip()


def _file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row: dict[str, Any] = json.loads(line)
                if not isinstance(row.get("prompt"), str) or not isinstance(row.get("response"), str):
                    raise SettingsError(f"evidence: {path}:{number}: needs `prompt` and `response`, both strings")
                yield row["prompt"], row["response"]
    except (OSError, ValueError) as error:
        raise SettingsError(f"evidence: cannot read {path}: {error}") from None


async def _by_vllm(texts: Sequence[str]) -> list[float]:
    from streams.judge import Judge
    from streams.records import Message
    from streams.settings import load_settings
    from streams.vllm import VllmPool

    settings = load_settings().judge
    key = settings.api_key.get_secret_value() if settings.api_key else None
    async with VllmPool(
        settings.urls, api_key=key, concurrency=settings.concurrency, timeout_s=settings.timeout_s
    ) as pool:
        judge = Judge(pool, settings)
        at_once = asyncio.Semaphore(settings.concurrency)

        async def one(text: str) -> float:
            async with at_once:
                return (await judge.rate([Message(role="user", content=text)])).difficulty

        return await asyncio.gather(*(one(text) for text in texts))
