"""One run: the arm's prompts through the buffer, a snapshot and the very training process that haypile starts."""

import asyncio
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.rules.rank import rank_key
from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.records import Candidate, Message, ScoredPrompt
from streams.settings import BufferSettings
from streams.snapshots import write_snapshot
from tests.evidence.stream import Prompt
from trainers.launch import environment
from trainers.recipe import Recipe
from trainers.rundir import Plan, RunFolder

NEAR = BufferSettings().near_duplicate


async def curated(prompts: Sequence[Prompt], k: int) -> list[Prompt]:
    """What a buffer of capacity k keeps of the stream: the hardest, none alike to another."""
    by_id = {p.id: p for p in prompts}
    buffer = await _filled(list(by_id.values()), BufferRules(k, near_duplicate=NEAR))
    return [by_id[member.prompt.id] async for chunk in buffer.iterate() for member in chunk]


async def train(folder: Path, prompts: Sequence[Prompt], base: Path | str, recipe: Recipe) -> dict[str, Any]:
    """Trains on the prompts with their answers, once: a folder that is complete is not trained again.

    Returns the run's metrics. Raises RuntimeError with the end of the log when training fails.
    """
    content = json.dumps([sorted(p.id for p in prompts), str(base), recipe.model_dump(mode="json")], sort_keys=True)
    digest, mark = hashlib.sha256(content.encode()).hexdigest(), folder / "content"
    run = RunFolder(folder / "run")
    if not mark.exists() or mark.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        run.path.mkdir(parents=True)
        main = await _filled(prompts, BufferRules(len(prompts)))
        for prompt in prompts:
            await main.attach(prompt.id, [Candidate(text=prompt.answer, reward=9.0, origin="production")])
        nothing = MemoryBuffer(BufferRules(1))
        snapshot = await write_snapshot(str(folder / "snapshot"), "evidence", main, nothing, {}, {}, now_ms=0)
        run.write("plan.json", Plan(snapshot=snapshot, base_model=str(base), recipe=recipe))
        mark.write_text(digest)
    if "dpo" not in run.progress().completed:
        with run.log.open("ab") as log:
            command = [sys.executable, "-m", "trainers.run", str(run.path)]
            ended = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment(recipe))
            code = await ended.wait()
        if code:
            raise RuntimeError(f"training in {run.path} failed: {run.log_tail()}")
    return dict(run.progress().metrics)


async def _filled(prompts: Sequence[Prompt], rules: BufferRules) -> MemoryBuffer:
    buffer = MemoryBuffer(rules)
    for prompt in prompts:
        scored = ScoredPrompt(
            id=prompt.id,
            prompt_id=prompt.id,
            messages=[Message(role="user", content=prompt.text)],
            ts=0,
            difficulty=prompt.difficulty,
            quality=5.0,
            category="other",
            label_mass=1.0,
            judge="evidence",
        )
        await buffer.offer([Offer(prompt=scored, rank_key=rank_key(prompt.difficulty, 0, None))], [])
    return buffer
