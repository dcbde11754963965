"""`haypile eval`: which model is meant, made ready on the servers; its answers to a suite; two models compared."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from deploy.clients import judge_pool, reward_pool, serving_pool
from streams.errors import Fatal, HaypileError
from streams.judge import Judge
from streams.pairs import PairJudge
from streams.retry import OutageLog, patiently
from streams.rewards import Rewarder
from streams.settings import Settings
from streams.vllm import VllmPool
from trainers.gate import evaluate
from trainers.gate_page import page
from trainers.recipe import EverydayRecipe, GateRecipe
from trainers.registry import VERSION, Registry
from trainers.rundir import write_atomic
from trainers.suite import Answer, Suite, answers_file, file_name, formatted, gpt4o_tokens
from trainers.suite_run import Journal, Run, answer_suite
from trainers.verdict import GateReport

log = logging.getLogger(__name__)

PROGRESS_S = 10.0


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_tokens: int
    temperature: float
    seed: int
    concurrency: int


@dataclass(frozen=True)
class Answered:
    """What became of a suite with one model."""

    model: str
    name: str
    """The model's name in the files."""
    file: Path
    answers: list[Answer]

    @property
    def answered(self) -> int:
        """Questions with an answer."""
        return len(self.answers) - len(self.refused)

    @property
    def refused(self) -> dict[str, str]:
        """Question → why there is no answer."""
        return {answer.key: answer.refused for answer in self.answers if answer.refused is not None}


@dataclass(frozen=True)
class Meant:
    """A model that the user named: `version` of the registry, or `served` as it is."""

    version: str | None
    served: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.version or self.served


def meant_by(model: str, settings: Settings, registry: Registry) -> Meant:
    """`champion`, `base`, a version of the registry, or a name that the servers list. Raises `UnknownVersion`."""
    version = registry.champion().version if model == "champion" else model if VERSION.fullmatch(model) else None
    if version is not None:
        registry.path(version)
        # A name of its own: the trainer unloads what was rejected from under the names that it gives itself.
        return Meant(version, f"{settings.serving.adapter_prefix}-eval-{version}")
    return Meant(None, settings.serving.model if model in ("champion", "base") else model)


@asynccontextmanager
async def ready(meant: Meant, pool: VllmPool, registry: Registry) -> AsyncIterator["Loader"]:
    """The model is served on every server; an adapter that was loaded for this is unloaded afterwards."""
    loader = Loader(meant, pool, registry)
    try:
        await loader.make_ready()
        yield loader
    finally:
        await loader.unload()


class Loader:
    """Loads an adapter on every server of the pool, again if one was restarted."""

    def __init__(self, meant: Meant, pool: VllmPool, registry: Registry) -> None:
        self._meant = meant
        self._pool = pool
        self._registry = registry

    async def make_ready(self) -> None:
        """Waits out outages. Raises `Fatal`: the adapter is damaged or refused, the name is not served."""
        outage = OutageLog("eval", time.monotonic)
        version, name = self._meant.version, self._meant.served
        if version is not None:
            await asyncio.to_thread(self._registry.verify, version)
        for url in self._pool.urls:
            there = await patiently(partial(self._pool.models, url), outage.failed)
            if name in there:
                continue
            if version is None:
                raise Fatal(f"vLLM at {url} does not serve {name!r} (it serves {', '.join(there)})")
            load = partial(self._pool.load_adapter, url, name, str(self._registry.path(version)))
            await patiently(load, outage.failed)
            outage.worked()

    async def unload(self) -> None:
        """A server that is away has forgotten it anyway; never raises."""
        if self._meant.version is None:
            return
        for url in self._pool.urls:
            try:
                await self._pool.unload_adapter(url, self._meant.served)
            except HaypileError as error:
                log.warning("%s stays loaded at %s: %s", self._meant.served, url, error)


async def answer(suite: Suite, meant: Meant, out: Path, settings: Settings, sampling: Sampling) -> Answered:
    """All answers of a model to a suite, in the suite's own format under `out`; goes on where an earlier call ended.

    Raises `SettingsError` when `out` holds answers of something else, `Fatal`, `OSError`; an outage is waited out."""
    registry = Registry(settings.training.registry)
    name = file_name(meant.name)
    run = Run(
        suite=suite.sha256,
        model=meant.name,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )
    with Journal(out / "journal" / f"{name}.jsonl", run) as journal:
        if any(question.key not in journal.answers for question in suite.questions):
            # An answer may take as long as one of the teacher's.
            serving = serving_pool(settings, settings.answer.timeout_s, sampling.concurrency)
            async with serving as pool, ready(meant, pool, registry) as loader:
                await answer_suite(
                    suite,
                    journal,
                    pool=pool,
                    model=meant.served,
                    run=run,
                    concurrency=sampling.concurrency * len(pool.urls),
                    make_ready=loader.make_ready,
                    on_answer=_Progress(name, len(suite.questions), len(journal.answers)),
                )
        answers = list(journal.answers.values())
        file = answers_file(suite, out, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        counter = gpt4o_tokens() if suite.format == "arena-hard" else None
        write_atomic(file, formatted(suite, answers, name, counter).encode("utf-8", "replace"))
    return Answered(model=run.model, name=name, file=file, answers=answers)


class _Progress:
    """A line on stderr every few seconds."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done = name, total, done
        self._said = time.monotonic()

    def __call__(self) -> None:
        self._done += 1
        if time.monotonic() - self._said >= PROGRESS_S or self._done == self._total:
            self._said = time.monotonic()
            print(f"{self._name}: {self._done} of {self._total} answered", file=sys.stderr)


class _Known:
    """Answers that were given already, as if the models were asked."""

    def __init__(self, answers: Mapping[tuple[str, str], str]) -> None:
        self._answers = answers

    async def chat(self, messages: Sequence[Mapping[str, str]], *, model: str, **_: Any) -> list[str]:
        return [self._answers[(model, messages[-1]["content"])]]


async def compare(
    suite: Suite,
    baseline: Answered,
    challenger: Answered,
    out: Path,
    settings: Settings,
    by: Literal["reward", "judge_pairs"],
) -> GateReport:
    """The first turns of both, compared as in the gate; written to `compare.json` and `compare.html` under `out`."""
    first_turn = {question.key: question.turns[0] for question in suite.questions}
    known = {
        (answered.name, first_turn[answer.key]): answer.turns[0]
        for answered in (baseline, challenger)
        for answer in answered.answers
        if answer.refused is None
    }
    rows = [
        {
            "prompt_id": question.key,
            "difficulty": 0.0,
            "category": str(question.row.get("category") or question.row.get("dataset") or ""),
            "messages": [{"role": "user", "content": question.turns[0]}],
        }
        for question in suite.questions
        if all((answered.name, question.turns[0]) in known for answered in (baseline, challenger))
    ]
    recipe = GateRecipe(
        by=by, prompts=max(len(rows), 1), min_prompts=1, length_control=True, everyday=EverydayRecipe(prompts=0)
    )
    async with judge_pool(settings) as judges, reward_pool(settings) as rewards:
        rubric = Judge(judges, settings.judge).rubric
        report = await evaluate(
            rows,
            pool=_Known(known),
            champion=baseline.name,
            challenger=challenger.name,
            rewards=Rewarder(rewards, settings, rubric),
            pairs=PairJudge(judges, settings, rubric),
            recipe=recipe,
        )
    write_atomic(out / "compare.json", msgspec.json.format(msgspec.json.encode(report)))
    shown = page(report, ("Better than the baseline", "Not shown to be better than the baseline"))
    write_atomic(out / "compare.html", shown.encode("utf-8", "replace"))
    return report
