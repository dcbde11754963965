"""The gate: champion against challenger. Both answer the same prompts, the hardest held-out ones and everyday ones; the
rewarder rates both answers, or the judge compares them. `trainers.verdict` has the figures and the verdict.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from streams.errors import InvalidRecord
from streams.pairs import Preference
from streams.records import Message
from streams.retry import OutageLog, patiently
from streams.rubric import conversation_text
from streams.vllm import BadRequest, TooLong
from trainers.recipe import GateRecipe
from trainers.verdict import Comparison, GateReport, judge_rows

log = logging.getLogger(__name__)


class Chat(Protocol):
    """What answers: `streams.vllm.VllmPool`."""

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = None,
    ) -> list[str]:
        """A list of one answer."""
        ...


class Rewards(Protocol):
    """What rates answers: `streams.rewards.Rewarder`."""

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """One reward an answer."""
        ...


class Pairs(Protocol):
    """What compares answers: `streams.pairs.PairJudge`."""

    async def prefer(self, messages: Sequence[Message], one: str, two: str) -> Preference:
        """The preference between two answers."""
        ...


def hardest(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The prompts that the gate takes: the hardest, ties by prompt id."""
    return sorted(rows, key=lambda row: (-float(row["difficulty"]), str(row["prompt_id"])))[:count]


async def evaluate(
    rows: Sequence[Mapping[str, Any]],
    *,
    pool: Chat,
    champion: str,
    challenger: str,
    rewards: Rewards,
    recipe: GateRecipe,
    pairs: Pairs | None = None,
    everyday: Sequence[Mapping[str, Any]] = (),
    seed: int = 17,
) -> GateReport:
    """Compare two served models on rows of a snapshot's held-out split (`prompt_id`, `messages`, `difficulty`,
    `category`) and on everyday prompts (the same without `difficulty`).

    `gate.by` chooses between `rewards` and `pairs`. A prompt that either model or the judge cannot take is skipped and
    counted. An outage is waited out: raises only `Fatal`.
    """
    if recipe.by == "judge_pairs" and pairs is None:
        raise ValueError("gate.by is judge_pairs, and there is nothing that compares pairs")
    slots = asyncio.Semaphore(recipe.concurrency)
    outage = OutageLog("gate", time.monotonic)
    skipped: dict[str, int] = {}

    async def ask(call: Callable[[], Awaitable[Any]]) -> Any:
        answer = await patiently(call, outage.failed)
        outage.worked()
        return answer

    async def compare(row: Mapping[str, Any], kind: Literal["hard", "everyday"]) -> Comparison | None:
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in row["messages"]]
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        difficulty = row.get("difficulty")

        async def answer(model: str) -> str:
            [text] = await pool.chat(
                turns, model=model, temperature=recipe.temperature, max_tokens=recipe.max_tokens, seed=seed
            )
            return text

        async with slots:
            try:
                found = Comparison(
                    prompt_id=str(row["prompt_id"]),
                    set=kind,
                    category=str(row.get("category") or ""),
                    difficulty=None if difficulty is None else float(difficulty),
                    prompt=conversation_text(turns),
                    champion_answer=await ask(lambda: answer(champion)),
                    challenger_answer=await ask(lambda: answer(challenger)),
                )
                ours, theirs = found.champion_answer, found.challenger_answer
                if pairs is not None and recipe.by == "judge_pairs":
                    preference: Preference = await ask(lambda: pairs.prefer(messages, ours, theirs))
                    found.preference, found.first = preference.two, preference.first
                    found.label_mass = preference.label_mass
                else:
                    both = await ask(lambda: rewards.reward(messages, [ours, theirs]))
                    found.champion_reward, found.challenger_reward = both
            except (InvalidRecord, TooLong, BadRequest) as error:
                reason = error.reason if isinstance(error, InvalidRecord) else "too_long_or_refused"
                skipped[reason] = skipped.get(reason, 0) + 1
                log.info("gate: prompt %s is skipped: %s", row["prompt_id"], error)
                return None
        return found

    tasks = [asyncio.create_task(compare(row, "hard")) for row in hardest(rows, recipe.prompts)]
    tasks += [asyncio.create_task(compare(row, "everyday")) for row in everyday[: recipe.everyday.prompts]]
    try:
        compared = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    found = [row for row in compared if row is not None]
    return judge_rows(found, recipe, champion=champion, challenger=challenger, skipped=skipped)
