"""The gate: its interval against published figures, its verdicts on simulated challengers, the comparison itself."""

import random
from collections.abc import AsyncIterator, Sequence

import pytest
from aiohttp.test_utils import TestServer

from streams.errors import Fatal, InvalidRecord
from streams.records import Message
from streams.vllm import VllmPool
from tests.support.fake_vllm import FakeVllm
from trainers.gate import Comparison, GateReport, evaluate, hardest, judge_rows, wilson
from trainers.recipe import GateRecipe

RECIPE = GateRecipe(prompts=500, min_prompts=30, min_win_rate=0.5, min_lower_bound=0.5)


def compare(pairs: Sequence[tuple[float, float]], recipe: GateRecipe = RECIPE) -> GateReport:
    rows = [
        Comparison(prompt_id=str(i), difficulty=5, champion_reward=a, challenger_reward=b)
        for i, (a, b) in enumerate(pairs)
    ]
    return judge_rows(rows, recipe, champion="old", challenger="new", skipped={})


def simulate(seed: int, advantage: float, prompts: int = 500) -> GateReport:
    """Both rewards are noise of deviation 1; the challenger's mean is higher by `advantage`."""
    draw = random.Random(seed)
    return compare([(draw.gauss(5, 1), draw.gauss(5 + advantage, 1)) for _ in range(prompts)])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials, 0.95) == pytest.approx((low, high), abs=5e-5)


def test_no_trials_say_nothing() -> None:
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_the_counts() -> None:
    report = compare([(5, 6), (5, 4), (5, 5.05), (5, 4.95)] * 10)
    assert (report.wins, report.losses, report.ties, report.win_rate) == (10, 10, 20, 0.5)
    assert report.champion_reward == 5 and report.challenger_reward == pytest.approx(5.0)


def test_a_better_challenger_is_promoted_and_a_worse_one_is_not() -> None:
    better = sum(simulate(seed, 0.4).promote for seed in range(100))
    worse = sum(simulate(seed, -0.4).promote for seed in range(100))
    assert better >= 99 and worse == 0


def test_an_equal_challenger_is_promoted_as_rarely_as_the_confidence_says() -> None:
    # One-sided: 2.5 % of 1,000, with room of four standard deviations (5 each).
    assert sum(simulate(seed, 0.0).promote for seed in range(1000)) <= 45


def test_the_same_answers_are_no_reason_to_promote() -> None:
    report = compare([(5.0, 5.0)] * 100)
    assert not report.promote and "not above gate.min_win_rate" in report.reason


def test_a_win_rate_that_is_not_certain_is_rejected_and_says_why() -> None:
    report = compare([(5, 6)] * 18 + [(5, 4)] * 14)
    assert not report.promote
    assert "the lower end is under gate.min_lower_bound 0.5" in report.reason and "over 32 prompts" in report.reason


@pytest.mark.parametrize(("too_few", "promote"), [("reject", False), ("promote", True)])
def test_too_few_prompts_have_their_own_verdict(too_few: str, promote: bool) -> None:
    report = compare([(1, 9)] * 5, RECIPE.model_copy(update={"too_few": too_few}))
    assert report.promote is promote
    assert "5 held-out prompts could be compared, fewer than gate.min_prompts 30" in report.reason


def test_no_prompts_at_all() -> None:
    report = compare([])
    assert not report.promote and report.win_rate == 0.5


def test_the_hardest_are_taken() -> None:
    rows = [{"prompt_id": str(i), "difficulty": i % 5} for i in range(10)]
    assert [row["prompt_id"] for row in hardest(rows, 3)] == ["4", "9", "3"]


class Lengths:
    """Rates by name: the fake server's answers begin with the model's name."""

    def __init__(self, unreadable: str | None = None) -> None:
        self.unreadable = unreadable

    async def reward(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        if self.unreadable and self.unreadable in messages[-1].content:
            raise InvalidRecord("reward_unreadable", "no labels")
        return [7.0 if answer.startswith("teacher") else 3.0 for answer in answers]


@pytest.fixture
async def fake() -> AsyncIterator[tuple[FakeVllm, str]]:
    vllm = FakeVllm()
    server = TestServer(vllm.app)
    await server.start_server()
    yield vllm, str(server.make_url("")).rstrip("/")
    await server.close()


def rows(count: int) -> list[dict[str, object]]:
    return [
        {"prompt_id": f"p{i}", "difficulty": i, "messages": [{"role": "user", "content": f"prompt {i}"}]}
        for i in range(count)
    ]


async def test_both_models_answer_the_same_prompts(fake: tuple[FakeVllm, str]) -> None:
    vllm, url = fake
    vllm.fault("503", 5)
    async with VllmPool([url]) as pool:
        report = await evaluate(
            rows(40),
            pool=pool,
            champion="base",
            challenger="teacher",
            rewards=Lengths(unreadable="prompt 39"),
            recipe=RECIPE.model_copy(update={"prompts": 35, "concurrency": 4}),
        )
    assert report.promote and (report.wins, report.losses) == (34, 0)
    assert report.skipped == {"reward_unreadable": 1}
    assert {row.prompt_id for row in report.rows} == {f"p{i}" for i in range(5, 39)}
    assert all(row.champion_answer.startswith("base") for row in report.rows)
    assert vllm.most_at_once <= 4


async def test_a_model_that_is_not_served_ends_the_gate(fake: tuple[FakeVllm, str]) -> None:
    async with VllmPool([fake[1]]) as pool:
        with pytest.raises(Fatal, match="does not exist"):
            await evaluate(rows(5), pool=pool, champion="base", challenger="gone", rewards=Lengths(), recipe=RECIPE)
