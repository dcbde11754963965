"""A judge is measured on prompts of known difficulty before it is believed."""

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import pytest_asyncio
import redis.asyncio
from prometheus_client import CollectorRegistry

from agents.anchors import Anchors, AnchorStore, load_anchors
from agents.rules.anchors import Anchor, measured, pick, spearman
from agents.score import Score
from streams.app import Inbound
from streams.errors import Fatal, InvalidRecord, SettingsError, Transient
from streams.judge import Rating
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, Message, encode
from streams.redis_client import connect
from streams.rubric import CATEGORIES
from streams.settings import JudgeSettings, KafkaSettings, RedisSettings
from streams.topics import topic_names
from trainers import judge_check

ANCHORS = Path(__file__).parents[2] / "agents" / "data" / "anchors.jsonl"


def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in ANCHORS.read_text("utf-8").splitlines()]


def test_the_anchors_cover_the_scale_and_say_nothing_by_their_length() -> None:
    found = rows()
    assert len(found) >= 150 and len({row["id"] for row in found}) == len({row["prompt"] for row in found}) == len(
        found
    )
    levels, domains = [row["difficulty"] for row in found], [row["category"] for row in found]
    assert set(levels) == set(range(1, 10)) and min(levels.count(level) for level in set(levels)) >= 15
    assert set(domains) == set(CATEGORIES) and min(domains.count(d) for d in CATEGORIES) >= 15
    assert abs(spearman([len(str(row["prompt"])) for row in found], [float(str(level)) for level in levels])) < 0.1


def test_no_anchor_is_a_near_copy_of_what_the_demos_judge_learned_from() -> None:
    from trainers.judge_data import Example, graded, without_near_copies

    demo = (ANCHORS.parents[2] / "deploy" / "demo" / "prompts.jsonl").read_text("utf-8").splitlines()
    others = graded() + [Example(str(json.loads(line).get("prompt")), "demo") for line in demo]
    mine = [Example(str(row["prompt"]), "anchor") for row in rows()]
    kept = {row.text for row in without_near_copies(mine, others)}
    assert not [row.text for row in mine if row.text not in kept]


def test_a_subset_is_even_over_the_levels_and_always_the_same() -> None:
    anchors = load_anchors(None)
    chosen = pick(anchors, 27)
    assert [sum(a.difficulty == level for a in chosen) for level in range(1, 10)] == [3] * 9
    random.Random(1).shuffle(anchors)
    assert {a.id for a in pick(anchors, 27)} == {a.id for a in chosen} < {a.id for a in pick(anchors, 40)}
    assert len(pick(anchors, 10_000)) == len(anchors)


def test_spearman_is_that_of_the_checks() -> None:
    rng = random.Random(3)
    for size in (2, 3, 10, 100):
        a, b = ([float(rng.randint(0, 5)) for _ in range(size)] for _ in range(2))
        expected = judge_check.spearman(np.array(a), np.array(b))
        assert spearman(a, b) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(spearman([1.0], [2.0])) and math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))


def test_drift_is_the_mean_distance_to_the_first_ratings() -> None:
    anchors = [Anchor("a", "x", 1), Anchor("b", "y", 5), Anchor("c", "z", 9)]
    found = measured(anchors, {"a": 2.0, "b": 6.0}, {"a": 2.5, "b": 6.0, "c": 1.0})
    assert (found.drift, found.mean, found.rated, found.unreadable, found.spearman) == (0.25, 4.0, 2, 1, 1.0)
    assert measured(anchors, {}, {}).drift == 0 and math.isnan(measured(anchors, {}, {}).spearman)


class FakeJudge:
    """Rates by the label when it is good; `shift` moves every rating."""

    identity = "fake"

    def __init__(self) -> None:
        self.labels = {a.prompt: a.difficulty for a in load_anchors(None)}
        self.good = True
        self.shift = 0.0
        self.trouble: list[Exception] = []

    async def rate(self, messages: list[Message]) -> Rating:
        if self.trouble:
            raise self.trouble.pop(0)
        label = self.labels[messages[0].content]
        value = (label if self.good else 5 + label % 2) + self.shift
        return Rating(difficulty=value, quality=6, category="math", label_mass=1, seen_chars=1)


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


def make(
    client: redis.asyncio.Redis, namespace: str, judge: FakeJudge, **changes: object
) -> tuple[Anchors, AnchorStore, Metrics]:
    metrics, store = Metrics(CollectorRegistry()), AnchorStore(client, namespace)
    settings = JudgeSettings(anchors=27, **changes)  # type: ignore[arg-type]
    return Anchors(settings, judge=judge, store=store, metrics=metrics, now_ms=lambda: 5), store, metrics  # type: ignore[arg-type]


async def test_a_good_judge_may_rate_and_its_first_ratings_are_kept(
    client: redis.asyncio.Redis, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge = FakeJudge()
    anchors, store, metrics = make(client, namespace, judge)
    found = await anchors.once()
    assert (found.spearman, found.drift, found.rated) == (1.0, 0.0, 27)
    judge.shift = 0.2
    assert (await anchors.once()).drift == pytest.approx(0.2)
    last = await store.last("fake")
    assert last is not None and not last.alarm and last.drift == pytest.approx(0.2)
    judge.shift = 0.4
    assert (await anchors.once()).drift == pytest.approx(0.4)
    last = await store.last("fake")
    assert last is not None and last.alarm and last.spearman == 1.0 and last.ts == 5
    assert "0.40 points away from its own first ratings" in caplog.text
    value = metrics.registry.get_sample_value
    assert value("haypile_judge_anchor_alarm") == 1 and value("haypile_judge_anchor_spearman") == 1
    assert await store.last("another") is None


async def test_a_judge_under_the_floor_is_refused(client: redis.asyncio.Redis, namespace: str) -> None:
    judge = FakeJudge()
    judge.good = False
    anchors, _, _ = make(client, namespace, judge)
    with pytest.raises(Fatal, match=r"judge fake is refused: on 27 prompts .* judge\.min_anchor_spearman = 0\.3"):
        await anchors.once()
    anchors, _, _ = make(client, namespace, judge, min_anchor_spearman=None)
    await anchors.once()


async def test_a_judge_that_reads_nothing_is_refused(client: redis.asyncio.Redis, namespace: str) -> None:
    judge = FakeJudge()
    judge.trouble = [InvalidRecord("judge_unreadable", "no labels")] * 27
    anchors, store, _ = make(client, namespace, judge)
    with pytest.raises(Fatal, match="27 unreadable"):
        await anchors.once()
    last = await store.last("fake")
    assert last is not None and last.spearman is None and last.rated == 0


async def test_nothing_is_rated_before_and_an_outage_is_waited_out(
    client: redis.asyncio.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.anchors.AGAIN_S", 0.01)
    judge = FakeJudge()
    judge.trouble = [Transient("vLLM is away")] * 30
    anchors, _, metrics = make(client, namespace, judge, anchors_every_s=0.01)
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(anchors.run(stop, ready))
    await asyncio.wait_for(ready.wait(), 10)
    assert judge.trouble == [] and metrics.registry.get_sample_value("haypile_retries_total", {"hop": "anchors"})
    judge.good = False  # it is measured again on the schedule
    with pytest.raises(Fatal):
        await asyncio.wait_for(task, 10)


async def test_without_anchors_the_judge_is_believed_at_once(client: redis.asyncio.Redis, namespace: str) -> None:
    anchors = Anchors(
        JudgeSettings(anchors=0),
        judge=FakeJudge(),  # type: ignore[arg-type]
        store=AnchorStore(client, namespace),
        metrics=Metrics(CollectorRegistry()),
    )
    ready = asyncio.Event()
    await anchors.run(asyncio.Event(), ready)
    assert ready.is_set()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("not json", "line 1"),
        ('{"prompt": "a", "difficulty": 12}', "from 1 to 9"),
        ('{"prompt": "a"}', "difficulty"),
        ('{"prompt": "a", "difficulty": 3}\n{"prompt": "b", "difficulty": 3}', "no two prompts"),
        ("[1]", "line 1"),
    ],
)
def test_anchors_of_ones_own_are_checked(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "anchors.jsonl"
    file.write_text(content)
    with pytest.raises(SettingsError, match=problem):
        load_anchors(file)
    with pytest.raises(SettingsError, match="cannot read"):
        load_anchors(tmp_path / "none")


async def test_score_rates_nothing_before_the_judge_is_measured() -> None:
    class Producer:
        sent: ClassVar[list[object]] = []

        async def send(self, *args: object, **kwargs: object) -> None:
            self.sent.append(args)

    ready = asyncio.Event()
    judge = FakeJudge()
    score = Score(topic_names(KafkaSettings()), judge=judge, producer=Producer(), now_ms=lambda: 5, ready=ready)  # type: ignore[arg-type]
    text = next(iter(judge.labels))
    prompt = AcceptedPrompt(id="a", prompt_id="p", messages=[Message("user", text)], ts=1)
    task = asyncio.create_task(score(Inbound("t", 0, 0, encode(prompt), 0, ())))
    await asyncio.sleep(0.05)
    assert not task.done() and Producer.sent == []
    ready.set()
    assert await asyncio.wait_for(task, 5) == "scored"
