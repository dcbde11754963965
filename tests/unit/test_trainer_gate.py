"""The gate: its interval against published figures, its verdicts on simulated challengers, the comparison itself."""

import json
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestServer

from streams.errors import Fatal, InvalidRecord, SettingsError
from streams.intervals import wilson
from streams.pairs import PairJudge
from streams.records import Message
from streams.rewards import Rewarder
from streams.rubric import CATEGORIES, RUBRIC
from streams.settings import Settings
from streams.vllm import VllmPool
from tests.support.fake_vllm import FakeVllm
from tests.support.simulated_models import SimulatedModels
from trainers.everyday import everyday_rows
from trainers.gate import evaluate, hardest
from trainers.recipe import EverydayRecipe, GateRecipe
from trainers.service import serve
from trainers.verdict import Comparison, GateReport, judge_rows

HARD_ONLY = EverydayRecipe(prompts=0)
RECIPE = GateRecipe(prompts=500, min_prompts=30, min_win_rate=0.5, min_lower_bound=0.5, everyday=HARD_ONLY)


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
    assert sum(simulate(seed, 0.0, prompts=200).promote for seed in range(1000)) <= 45


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
        {
            "prompt_id": f"p{i}",
            "difficulty": i,
            "category": "math" if i % 2 else "code",
            "messages": [{"role": "user", "content": f"prompt {i}"}],
        }
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
    assert {name: rate.prompts for name, rate in report.categories.items()} == {"code": 17, "math": 17}
    assert report.everyday is None and report.positions is None
    assert vllm.most_at_once <= 4


async def test_a_model_that_is_not_served_ends_the_gate(fake: tuple[FakeVllm, str]) -> None:
    async with VllmPool([fake[1]]) as pool:
        with pytest.raises(Fatal, match="does not exist"):
            await evaluate(rows(5), pool=pool, champion="base", challenger="gone", rewards=Lengths(), recipe=RECIPE)


@asynccontextmanager
async def simulated(models: SimulatedModels) -> AsyncIterator[tuple[VllmPool, Rewarder, PairJudge]]:
    """The models behind HTTP, with the real client, rewarder and judge of pairs."""
    server = TestServer(models.app)
    await server.start_server()
    url = str(server.make_url("")).rstrip("/")
    settings = Settings.model_validate({"judge": {"urls": [url]}})
    async with VllmPool([url]) as pool:
        yield pool, Rewarder(pool, settings, RUBRIC), PairJudge(pool, settings, RUBRIC)
    await server.close()


async def gate(
    models: SimulatedModels, champion: str, challenger: str, recipe: GateRecipe, everyday: int = 0
) -> GateReport:
    async with simulated(models) as (pool, rewards, pairs):
        return await evaluate(
            rows(recipe.prompts),
            pool=pool,
            champion=champion,
            challenger=challenger,
            rewards=rewards,
            pairs=pairs,
            recipe=recipe,
            everyday=everyday_rows(None)[:everyday],
        )


POWER = {"prompts": 24, "min_prompts": 20, "everyday": HARD_ONLY}


@pytest.mark.parametrize(("by", "likes_first"), [("reward", 0.0), ("judge_pairs", 2.5)])
async def test_nineteen_of_twenty_worse_ones_are_rejected_and_better_ones_promoted(by: str, likes_first: float) -> None:
    recipe = GateRecipe.model_validate(POWER | {"by": by})
    better = worse = 0
    for seed in range(20):
        models = SimulatedModels(seed, ("0.0-300", "2.0-300"), likes_first=likes_first)
        better += (await gate(models, "0.0-300", "2.0-300", recipe)).promote
        worse += (await gate(models, "2.0-300", "0.0-300", recipe)).promote
    assert better >= 19 and worse <= 1


async def test_the_liking_for_a_place_is_reported_and_does_not_decide() -> None:
    recipe = GateRecipe.model_validate(POWER | {"by": "judge_pairs"})
    names = ("0.0-300", "0.00-300")  # equal, but with luck of their own
    win_rates = set()
    for likes_first, share in ((0.0, 0.5), (3.0, 0.82)):
        report = await gate(SimulatedModels(3, names, likes_first=likes_first), *names, recipe)
        assert report.positions is not None
        assert report.positions.first_share == pytest.approx(share, abs=0.06)
        assert report.positions.label_mass == pytest.approx(0.9, abs=0.01)
        assert (report.positions.agree == 1) is (likes_first == 0)
        assert report.champion_reward is None and all(row.preference is not None for row in report.rows)
        win_rates.add(report.win_rate)
    assert len(win_rates) == 1, "the answers are the same, and an additive liking leaves no trace"


async def test_longer_is_not_better_when_the_recipe_says_so() -> None:
    raw = GateRecipe.model_validate(POWER | {"prompts": 120})
    fair = raw.model_copy(update={"length_control": True})
    longer = SimulatedModels(1, ("0.0-300", "0.0-420"), likes_length=2.0)
    report = await gate(longer, "0.0-300", "0.0-420", raw)
    assert report.promote and report.decided_on == "raw" and report.length_controlled.effect > 0
    report = await gate(longer, "0.0-300", "0.0-420", fair)
    assert not report.promote and report.decided_on == "length_controlled"
    assert report.lower > 0.5 > report.length_controlled.lower
    assert "win rate at equal length" in report.reason
    better = SimulatedModels(1, ("0.0-300", "1.5-300"), likes_length=2.0)
    assert (await gate(better, "0.0-300", "1.5-300", fair)).promote


class Specialist(SimulatedModels):
    """What is not one of the test's hard prompts it answers badly, under whatever name it has a positive mean."""

    def _chat_body(self, body: dict[str, object]) -> dict[str, object]:
        messages = body["messages"]
        assert isinstance(messages, list)
        hard = messages[-1]["content"].startswith("prompt ")
        return super()._chat_body(body if hard or body["model"] == "0.0-300" else body | {"model": "-2.0-300"})


async def test_a_specialist_that_forgot_the_everyday_is_rejected() -> None:
    recipe = GateRecipe.model_validate(POWER | {"everyday": {"prompts": 60}})
    names = ("0.0-300", "2.0-300")
    report = await gate(Specialist(1, names), *names, recipe, everyday=60)
    assert report.everyday is not None and (report.prompts, report.everyday.prompts) == (24, 60)
    assert report.lower > 0.5 and not report.promote
    assert "but on 60 everyday prompts the lower end is 0.0" in report.reason
    assert "under gate.everyday.min_lower_bound 0.3" in report.reason
    assert {row.set for row in report.rows} == {"hard", "everyday"}

    report = await gate(SimulatedModels(1, names), *names, recipe, everyday=60)
    assert report.promote and "on 60 everyday prompts the lower end is 0." in report.reason


async def test_everyday_prompts_that_could_not_be_compared_are_no_proof() -> None:
    recipe = GateRecipe.model_validate(POWER | {"everyday": {"prompts": 60}})
    names = ("0.0-300", "2.0-300")
    report = await gate(SimulatedModels(1, names), *names, recipe, everyday=0)
    assert not report.promote and "on 0 everyday prompts the lower end is 0.000" in report.reason


def test_the_everyday_set_is_ordinary_varied_and_ours() -> None:
    found = everyday_rows(None)
    assert len(found) >= 60 and len({row["prompt_id"] for row in found}) == len(found)
    for start in range(0, len(found), len(CATEGORIES)):
        assert {row["category"] for row in found[start : start + len(CATEGORIES)]} == set(CATEGORIES)
    texts = {row["messages"][-1]["content"] for row in found}
    assert all(len(text) < 200 for text in texts)
    root = Path(__file__).parents[2]
    for file in ("agents/data/anchors.jsonl", "trainers/data/graded_prompts.jsonl", "deploy/demo/prompts.jsonl"):
        with (root / file).open(encoding="utf-8") as lines:
            assert not texts & {json.loads(line).get("prompt") for line in lines}, "trained or measured on elsewhere"


def test_everyday_prompts_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"prompt": "one", "category": "x"}\n\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]}\n'
    )
    first, second = everyday_rows(file)
    assert (first["messages"], first["category"]) == ([{"role": "user", "content": "one"}], "x")
    assert [turn["role"] for turn in second["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no prompt"),
        ('{"prompt": "x"}\n{"prompt": ""}', "row 2: neither a prompt nor messages"),
        ('{"prompt": \n', "line 1"),
        ("[]", "row 1: not an object"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "row 1: the last message is not the user's"),
        ('{"messages": ["x"]}', "row 1: messages are objects"),
        (None, "cannot read"),
    ],
)
def test_everyday_files_that_are_wrong(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "own.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"training\.everyday") as error:
        everyday_rows(file)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_trainer_says_at_once_that_its_everyday_prompts_cannot_be_read(tmp_path: Path) -> None:
    settings = Settings.model_validate({"training": {"recipe": "demo", "everyday": str(tmp_path / "nowhere.jsonl")}})
    with pytest.raises(SettingsError, match=r"training\.everyday: cannot read"):
        serve(settings, threading.Event())


async def test_pairs_need_somebody_who_compares_them(fake: tuple[FakeVllm, str]) -> None:
    async with VllmPool([fake[1]]) as pool:
        with pytest.raises(ValueError, match="judge_pairs"):
            await evaluate(
                rows(5),
                pool=pool,
                champion="base",
                challenger="teacher",
                rewards=Lengths(),
                recipe=RECIPE.model_copy(update={"by": "judge_pairs"}),
            )


async def test_the_report_survives_json() -> None:
    recipe = GateRecipe.model_validate(POWER | {"by": "judge_pairs", "everyday": {"prompts": 8}})
    names = ("0.0-300", "2.0-300")
    report = await gate(SimulatedModels(1, names), *names, recipe, everyday=8)
    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report
