"""The judge and the rewarder over a vLLM: what is asked, what is read, what is refused."""

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from streams.errors import InvalidRecord, SettingsError, Transient
from streams.judge import Judge
from streams.metrics import Metrics
from streams.records import Message
from streams.rewards import Rewarder
from streams.rubric import RUBRIC
from streams.settings import JudgeSettings, RewardSettings, Settings
from streams.vllm import VllmPool
from tests.support.fake_vllm import MAX_CHARS, FakeVllm


@pytest.fixture
async def fake() -> AsyncIterator[tuple[FakeVllm, VllmPool]]:
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    async with VllmPool([str(server.make_url(""))]) as pool:
        yield vllm, pool
    await server.close()


def user(text: str) -> list[Message]:
    return [Message("user", text)]


async def test_one_request_gives_three_answers(fake: tuple[FakeVllm, VllmPool]) -> None:
    vllm, pool = fake
    vllm.ratings["Prove it."] = 7
    rating = await Judge(pool, JudgeSettings()).rate(user("Prove it."))
    assert vllm.requests == 1
    assert 6 < rating.difficulty < 8
    assert 7 < rating.quality < 9
    assert rating.category in ("code", "math", "reasoning", "science", "humanities", "business", "writing", "everyday")
    assert 0.5 < rating.label_mass <= 1


async def test_a_text_over_the_context_is_halved_until_it_fits(fake: tuple[FakeVllm, VllmPool]) -> None:
    vllm, pool = fake
    metrics = Metrics(CollectorRegistry())
    judge = Judge(pool, JudgeSettings(max_chars=10 * MAX_CHARS), metrics)
    rating = await judge.rate(user("x" * (8 * MAX_CHARS)))
    assert 100 < rating.seen_chars < MAX_CHARS
    assert vllm.requests == 5  # 8, 4, 2 and 1 times what fits (the rubric comes on top), then half of it
    assert metrics.registry.get_sample_value("haypile_judge_shortened_total") == 1


async def test_too_little_mass_on_the_labels_twice_is_not_a_rating(fake: tuple[FakeVllm, VllmPool]) -> None:
    vllm, pool = fake
    judge = Judge(pool, JudgeSettings(min_label_mass=0.99))
    with pytest.raises(InvalidRecord) as error:
        await judge.rate(user("hello"))
    assert error.value.reason == "judge_unreadable"
    assert vllm.requests == 2


async def test_an_outage_is_transient_and_a_refusal_is_the_record_s_fault(fake: tuple[FakeVllm, VllmPool]) -> None:
    vllm, pool = fake
    judge = Judge(pool, JudgeSettings())
    vllm.fault("503", 1)
    with pytest.raises(Transient):
        await judge.rate(user("hello"))
    vllm.fault("400", 1)
    with pytest.raises(InvalidRecord) as error:
        await judge.rate(user("hello"))
    assert error.value.reason == "judge_refused"


def test_the_id_tells_judges_apart(tmp_path: object) -> None:
    pool = VllmPool(["http://127.0.0.1:1"])
    ids = {
        Judge(pool, settings).identity
        for settings in (JudgeSettings(), JudgeSettings(model="other"), JudgeSettings(revision="2"), JudgeSettings())
    }
    assert len(ids) == 3


def test_a_rubric_that_is_not_there_is_a_wrong_setting(tmp_path: object) -> None:
    with pytest.raises(SettingsError, match=r"judge\.rubric"):
        Judge(VllmPool(["http://127.0.0.1:1"]), JudgeSettings.model_validate({"rubric": "/nowhere"}))


async def test_rewards_keep_their_order_and_long_answers_fit(fake: tuple[FakeVllm, VllmPool]) -> None:
    _, pool = fake
    rewarder = Rewarder(pool, Settings(reward=RewardSettings(max_chars=10 * MAX_CHARS)), RUBRIC)
    answers = ["short", "long " * MAX_CHARS, "another"]
    together = await rewarder.reward(user("question"), answers)
    alone = [(await rewarder.reward(user("question"), [answer]))[0] for answer in answers]
    assert together == alone
    assert all(1 <= reward <= 9 for reward in together)
