"""What haypile relies on in vLLM, over the fake and over the real one (its CPU build, SmolLM2, the demo's judge)."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.vllm import JUDGE
from streams.errors import Fatal
from streams.judge import Judge
from streams.pairs import PairJudge
from streams.records import Message
from streams.rubric import LETTERS, RATINGS, RUBRIC, Question, judge_prompts, labels_of, read
from streams.settings import JudgeSettings, Settings
from streams.vllm import TooLong, VllmPool
from tests.support.fake_vllm import FakeVllm


@pytest.fixture(params=["fake", "real"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[VllmPool]:
    if request.param == "real":
        async with VllmPool([request.getfixturevalue("vllm_url")], timeout_s=120) as pool:
            yield pool
        return
    server = TestServer(FakeVllm().app)
    await server.start_server()
    async with VllmPool([str(server.make_url(""))]) as pool:
        yield pool
    await server.close()


async def test_the_served_names(pool: VllmPool) -> None:
    assert {"base", "teacher", "judge"} <= set(await pool.models(pool.urls[0]))


async def test_the_queue_is_measured(pool: VllmPool) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{pool.urls[0]}/metrics") as response:
        names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting"} <= names, "what the dashboards ask for"


async def test_ratings_come_as_logprobs_of_the_labels(pool: VllmPool) -> None:
    prompts = judge_prompts("Prove that there are infinitely many primes.")
    completions = await pool.completions([*prompts.values()], model="judge")
    for question, completion in zip(prompts, completions, strict=True):
        reading = read(completion.top_logprobs, labels_of(question))
        assert reading.label_mass > 0.5
        assert math.isclose(sum(reading.probabilities.values()), 1, abs_tol=1e-6)
        assert reading.label in (LETTERS if question is Question.category else RATINGS)


async def test_the_judge_rates(pool: VllmPool) -> None:
    rating = await Judge(pool, JudgeSettings()).rate([Message("user", "What is 2 + 2?")])
    assert 1 <= rating.difficulty <= 9
    assert 1 <= rating.quality <= 9


async def test_a_prompt_over_the_context_is_too_long_and_the_server_lives_on(pool: VllmPool) -> None:
    text = "\u0b9c " * 15_000  # few characters a token: far over 2,048 tokens
    with pytest.raises(TooLong):
        await pool.completions([text], model="judge")
    with pytest.raises(TooLong):
        await pool.chat([{"role": "user", "content": text}], model="teacher", max_tokens=4)
    rating = await Judge(pool, JudgeSettings(max_chars=100_000)).rate([Message("user", text)])
    assert 0 < rating.seen_chars < len(text)


async def test_where_a_whole_answer_has_no_room_the_rest_of_the_context_can_be_had(pool: VllmPool) -> None:
    with pytest.raises(TooLong):
        await pool.chat([{"role": "user", "content": "Say hello."}], model="base", max_tokens=5_000)
    [answer] = await pool.chat([{"role": "user", "content": "Say hello."}], model="base", max_tokens=None)
    assert answer


async def test_the_judge_compares_pairs(pool: VllmPool) -> None:
    judge = PairJudge(pool, Settings(judge=JudgeSettings(min_label_mass=0.0)), RUBRIC)
    asked = [Message("user", "Name three fruits.")]
    found = await judge.prefer(asked, "Apple, banana and cherry.", "zx q q q zx")
    assert 0 < found.two < 1 and 0 < found.label_mass <= 1
    assert all(0 <= share <= 1 for share in found.first)
    same = await judge.prefer(asked, "Apples.", "Apples.")
    assert same.two == pytest.approx(0.5, abs=0.02)  # batches move single probabilities by thousandths


async def test_n_answers(pool: VllmPool) -> None:
    answers = await pool.chat(
        [{"role": "user", "content": "Say something."}], model="teacher", n=3, temperature=0.8, max_tokens=8
    )
    assert len(answers) == 3
    assert all(answers)


async def test_an_answer_comes_with_its_tokens_and_requests_are_counted(pool: VllmPool) -> None:
    [url] = pool.urls
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    answer = await pool.inspect(url, turns, model="base", max_tokens=16)
    assert answer.text.strip() and answer.finish_reason in ("stop", "length")
    assert 1 <= len(answer.tokens) == len(answer.logprobs) <= 16
    assert all(math.isfinite(value) and value <= 0 for value in answer.logprobs)
    before = await pool.answered(url)
    await pool.inspect(url, turns, model="base", max_tokens=1)
    with pytest.raises(TooLong):
        await pool.chat([{"role": "user", "content": "\u0b9c " * 15_000}], model="base", max_tokens=4)
    after = await pool.answered(url)
    assert before is not None and after is not None
    assert (after[0] - before[0], after[1] - before[1]) == (2, 0), "two answers, none of them with a 5xx"


async def test_an_unknown_model_is_fatal(pool: VllmPool) -> None:
    with pytest.raises(Fatal):
        await pool.completions(["x"], model="nobody")


async def test_adapters_come_and_go_and_repeats_are_fine(pool: VllmPool) -> None:
    [url] = pool.urls
    for _ in range(2):
        await pool.load_adapter(url, "a-1", str(JUDGE))
    assert "a-1" in await pool.models(url)
    answers = await pool.chat([{"role": "user", "content": "Hello"}], model="a-1", max_tokens=4)
    assert len(answers) == 1
    for _ in range(2):
        await pool.unload_adapter(url, "a-1")
    assert "a-1" not in await pool.models(url)


async def test_many_at_once(pool: VllmPool) -> None:
    judge = Judge(pool, JudgeSettings())
    ratings = await asyncio.gather(*(judge.rate([Message("user", f"What is {i} + {i}?")]) for i in range(24)))
    assert len(ratings) == 24


def test_the_judge_is_shipped() -> None:
    assert sorted(p.name for p in Path(JUDGE).iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
