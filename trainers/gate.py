"""The gate: champion against challenger on the held-out prompts. Statistics and verdict are pure, `evaluate` asks vLLM.

Both answer the same prompts, the hardest first; the same rewarder rates both answers; the higher reward wins.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from streams.errors import InvalidRecord
from streams.intervals import wilson
from streams.records import Message
from streams.retry import OutageLog, patiently
from streams.vllm import BadRequest, TooLong, VllmPool
from trainers.recipe import GateRecipe

log = logging.getLogger(__name__)


class Rewards(Protocol):
    """What rates answers: `streams.rewards.Rewarder`."""

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """One reward an answer."""
        ...


class Comparison(msgspec.Struct, kw_only=True):
    """One prompt: two answers and their rewards."""

    prompt_id: str
    difficulty: float
    champion_reward: float
    challenger_reward: float
    champion_answer: str = ""
    challenger_answer: str = ""


class GateReport(msgspec.Struct, kw_only=True):
    """The numbers, the verdict and its reason. `champion` is the name of what the challenger was compared with."""

    champion: str
    challenger: str
    prompts: int
    skipped: dict[str, int]
    """Prompts that could not be compared, by reason."""
    wins: int
    losses: int
    ties: int
    win_rate: float
    """Of the challenger; ties count half. 0.5 without prompts."""
    lower: float
    upper: float
    """Ends of the confidence interval of the win rate."""
    confidence: float
    champion_reward: float
    challenger_reward: float
    """Means."""
    promote: bool
    reason: str
    rows: list[Comparison]


def judge_rows(
    rows: Sequence[Comparison], recipe: GateRecipe, *, champion: str, challenger: str, skipped: Mapping[str, int]
) -> GateReport:
    """The report and verdict of the comparisons."""
    gaps = [row.challenger_reward - row.champion_reward for row in rows]
    wins = sum(gap > recipe.tie_margin for gap in gaps)
    losses = sum(gap < -recipe.tie_margin for gap in gaps)
    ties = len(rows) - wins - losses
    win_rate = (wins + ties / 2) / len(rows) if rows else 0.5
    lower, upper = wilson(wins + ties / 2, len(rows), recipe.confidence)
    promote, reason = _verdict(len(rows), win_rate, lower, recipe)
    return GateReport(
        champion=champion,
        challenger=challenger,
        prompts=len(rows),
        skipped=dict(skipped),
        wins=wins,
        losses=losses,
        ties=ties,
        win_rate=win_rate,
        lower=lower,
        upper=upper,
        confidence=recipe.confidence,
        champion_reward=_mean([row.champion_reward for row in rows]),
        challenger_reward=_mean([row.challenger_reward for row in rows]),
        promote=promote,
        reason=reason,
        rows=list(rows),
    )


def _verdict(prompts: int, win_rate: float, lower: float, recipe: GateRecipe) -> tuple[bool, str]:
    if prompts < recipe.min_prompts:
        action = "promoted unmeasured" if recipe.too_few == "promote" else "rejected"
        return recipe.too_few == "promote", (
            f"{prompts} held-out prompts could be compared, fewer than gate.min_prompts {recipe.min_prompts}: {action}"
        )
    measured = f"win rate {win_rate:.3f}, lower end {lower:.3f} at {recipe.confidence:.0%}, over {prompts} prompts"
    if win_rate <= recipe.min_win_rate:
        return False, f"{measured}: the win rate is not above gate.min_win_rate {recipe.min_win_rate:g}"
    if lower < recipe.min_lower_bound:
        return False, f"{measured}: the lower end is under gate.min_lower_bound {recipe.min_lower_bound:g}"
    return True, f"{measured}: better than the champion as the recipe asks"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def hardest(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The prompts that the gate takes: the hardest, ties by prompt id."""
    return sorted(rows, key=lambda row: (-float(row["difficulty"]), str(row["prompt_id"])))[:count]


async def evaluate(
    rows: Sequence[Mapping[str, Any]],
    *,
    pool: VllmPool,
    champion: str,
    challenger: str,
    rewards: Rewards,
    recipe: GateRecipe,
    seed: int = 17,
) -> GateReport:
    """Compare two served models on rows of a snapshot's held-out split (`prompt_id`, `messages`, `difficulty`).

    A prompt that either model or the rewarder cannot take is skipped and counted. An outage is waited out: raises only
    `Fatal`.
    """
    slots = asyncio.Semaphore(recipe.concurrency)
    outage = OutageLog("gate", time.monotonic)
    skipped: dict[str, int] = {}

    async def ask(call: Callable[[], Awaitable[Any]]) -> Any:
        answer = await patiently(call, outage.failed)
        outage.worked()
        return answer

    async def compare(row: Mapping[str, Any]) -> Comparison | None:
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in row["messages"]]
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]

        async def answer(model: str) -> str:
            [text] = await pool.chat(
                turns, model=model, temperature=recipe.temperature, max_tokens=recipe.max_tokens, seed=seed
            )
            return text

        async with slots:
            try:
                ours = await ask(lambda: answer(champion))
                theirs = await ask(lambda: answer(challenger))
                first, second = await ask(lambda: rewards.reward(messages, [ours, theirs]))
            except (InvalidRecord, TooLong, BadRequest) as error:
                reason = error.reason if isinstance(error, InvalidRecord) else "too_long_or_refused"
                skipped[reason] = skipped.get(reason, 0) + 1
                log.info("gate: prompt %s is skipped: %s", row["prompt_id"], error)
                return None
        return Comparison(
            prompt_id=str(row["prompt_id"]),
            difficulty=float(row["difficulty"]),
            champion_reward=first,
            challenger_reward=second,
            champion_answer=ours,
            challenger_answer=theirs,
        )

    tasks = [asyncio.create_task(compare(row)) for row in hardest(rows, recipe.prompts)]
    try:
        compared = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    found = [row for row in compared if row is not None]
    return judge_rows(found, recipe, champion=champion, challenger=challenger, skipped=skipped)
