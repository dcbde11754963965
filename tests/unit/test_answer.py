"""Answers for members: candidates, rewards, what is left alone."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from agents.answer import Answer
from streams.buffer.base import BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.errors import Fatal, InvalidRecord, Transient
from streams.metrics import Metrics
from streams.records import Member, Message, ScoredPrompt
from streams.rewards import Rewarder
from streams.rubric import RUBRIC
from streams.settings import AnswerSettings, Settings
from streams.vllm import VllmPool
from tests.support.fake_vllm import MAX_CHARS, FakeVllm


def scored(id: str, text: str, difficulty: float = 5, response: str | None = None) -> ScoredPrompt:
    return ScoredPrompt(
        id=id,
        prompt_id=id,
        messages=[Message("user", text)],
        ts=0,
        response=response,
        difficulty=difficulty,
        quality=8,
        category="math",
        label_mass=1,
        judge="j",
    )


@pytest.fixture
async def vllm() -> AsyncIterator[tuple[FakeVllm, VllmPool]]:
    fake = FakeVllm()
    server = TestServer(fake.app)
    await server.start_server()
    async with VllmPool([str(server.make_url(""))]) as pool:
        yield fake, pool
    await server.close()


async def buffer_of(*prompts: ScoredPrompt) -> MemoryBuffer:
    buffer = MemoryBuffer(BufferRules(10), time.time)
    await buffer.offer([Offer(prompt=p, rank_key=p.difficulty) for p in prompts], [])
    return buffer


def make(buffer: MemoryBuffer, pool: VllmPool, wanted: bool = True, **changes: object) -> Answer:
    settings = AnswerSettings.model_validate({"k": 3, "settle_s": 0, "interval_s": 0.01, **changes})

    async def is_wanted() -> bool:
        return wanted

    return Answer(
        settings,
        buffer=buffer,
        teacher=pool,
        rewarder=Rewarder(pool, Settings(), RUBRIC),
        wanted=is_wanted,
        metrics=Metrics(CollectorRegistry()),
    )


async def once(answer: Answer) -> int:
    """Answers one batch; how many were taken up."""
    members = await answer.take_up(answer._settings.batch)
    await asyncio.gather(*(answer.answer(member) for member in members))
    return len(members)


async def test_k_candidates_and_the_production_response_each_with_a_reward(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(scored("a", "q", response="what production said"))
    assert await once(make(buffer, vllm[1])) == 1
    member = await buffer.get("a")
    assert member is not None
    assert [c.origin for c in member.candidates] == ["teacher"] * 3 + ["production"]
    assert member.candidates[-1].text == "what production said"
    assert all(1 <= c.reward <= 9 for c in member.candidates)
    assert await once(make(buffer, vllm[1])) == 0, "answered once is answered"


async def test_the_hardest_first_and_not_more_than_a_batch(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(*(scored(str(i), f"q{i}", difficulty=i) for i in range(1, 8)))
    assert await once(make(buffer, vllm[1], batch=2)) == 2
    answered = [m.prompt.id for m in await buffer.top(10) if m.candidates]
    assert answered == ["7", "6"]


async def test_newcomers_are_left_to_settle(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(scored("a", "q"))
    assert await once(make(buffer, vllm[1], settle_s=600)) == 0
    assert await once(make(buffer, vllm[1], when="admission", settle_s=600)) == 1


async def test_only_when_a_run_needs_them(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(scored("a", "q"))
    assert await once(make(buffer, vllm[1], wanted=False, when="run")) == 0
    assert await once(make(buffer, vllm[1], wanted=True, when="run")) == 1


async def test_an_outage_is_waited_out(vllm: tuple[FakeVllm, VllmPool]) -> None:
    fake, pool = vllm
    buffer = await buffer_of(scored("a", "q"))
    fake.fault("503", 3)
    assert await once(make(buffer, pool)) == 1
    member = await buffer.get("a")
    assert member is not None
    assert len(member.candidates) == 3


async def test_a_prompt_that_the_teacher_cannot_take_stays_without_candidates(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(scored("long", "x" * 2 * MAX_CHARS), scored("a", "q"))
    answer = make(buffer, vllm[1])
    assert await once(answer) == 2
    assert await once(answer) == 0, "it is not asked for again"
    long = await buffer.get("long")
    assert long is not None
    assert long.candidates == []


async def test_a_long_answer_holds_up_nobody_else(
    vllm: tuple[FakeVllm, VllmPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = await buffer_of(*(scored(str(i), f"q{i}", difficulty=i) for i in range(1, 8)))
    answer, go, at_once = make(buffer, vllm[1], batch=2), asyncio.Event(), [0, 0]
    attempt = answer._attempt

    async def slow(member: Member) -> None:
        at_once[:] = at_once[0] + 1, max(at_once[1], at_once[0] + 1)
        if member.prompt.id == "7":
            await go.wait()
        await attempt(member)
        at_once[0] -= 1

    monkeypatch.setattr(answer, "_attempt", slow)
    stop = asyncio.Event()
    task = asyncio.create_task(answer.run(stop))
    async with asyncio.timeout(10):
        while (await buffer.stats()).answered < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [m.prompt.id for m in await buffer.top(10) if not m.candidates] == ["7"]
    assert at_once[1] == 2, "never more than `answer.batch`"
    stop.set()
    await asyncio.sleep(0.05)
    assert not task.done(), "what is in progress is finished"
    go.set()
    await asyncio.wait_for(task, 5)
    assert (await buffer.stats()).answered == 7


async def test_fatal_ends_it_and_leaves_nothing_running(vllm: tuple[FakeVllm, VllmPool]) -> None:
    buffer = await buffer_of(scored("a", "q"), scored("b", "q"))
    with pytest.raises(Fatal, match="does not exist"):
        await asyncio.wait_for(make(buffer, vllm[1], model="nobody").run(asyncio.Event()), 5)
    assert {t for t in asyncio.all_tasks() if "Answer" in repr(t)} == set()


async def test_it_ends_when_told(vllm: tuple[FakeVllm, VllmPool]) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(make(await buffer_of(), vllm[1]).run(stop))
    await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(task, 1)


async def test_a_classifier_rewards_on_its_own_scale_and_what_it_refuses_is_the_record_s_fault(
    vllm: tuple[FakeVllm, VllmPool],
) -> None:
    fake, pool = vllm
    settings = Settings.model_validate({"reward": {"kind": "classifier", "model": "base", "max_chars": 30_000}})
    rewarder = Rewarder(pool, settings, RUBRIC)
    rewards = await rewarder.reward([Message("user", "why?")], ["because", "just so"])
    texts = ["why?\n\nbecause", "why?\n\njust so"]
    assert rewards == await pool.classify(texts, model="base")
    assert len(set(rewards)) == 2
    assert min(rewards) < 0 or max(rewards) > 1, "not a probability"
    await rewarder.reward([Message("user", "x" * MAX_CHARS)], ["too long at first, halved until it fits"])
    fake.fault("400", 1)
    with pytest.raises(InvalidRecord, match="reward_refused"):
        await rewarder.reward([Message("user", "why?")], ["because"])
    fake.fault("503", 1)
    with pytest.raises(Transient):
        await rewarder.reward([Message("user", "why?")], ["because"])
