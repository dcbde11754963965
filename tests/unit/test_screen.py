"""Screening: what is skipped, when it is trusted, and what it never does."""

import hashlib
import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agents.rules.rank import rank_key
from agents.rules.screening import Margin, Recall, explored
from agents.rules.split import split
from agents.score import Score
from agents.screen import Screen
from streams.app import Inbound
from streams.judge import Rating
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, CuratedOutcome, Message, ScoredPrompt, Split
from streams.settings import BufferSettings, KafkaSettings, ScreenSettings
from streams.topics import topic_names

THRESHOLD = rank_key(5.0, 0, None)
EASY = ["please", "tell", "me", "a", "nice", "short", "story", "about", "my", "cat", "and", "the", "weather", "today"]
HARD = ["prove", "derive", "lemma", "∀", "ε", "δ", "∑", "asymptotic", "bound", "tight", "operator", "≤", "rigorous"]


def prompt(number: int, hard: bool, side: Split = "train") -> AcceptedPrompt:
    words = random.Random(number).choices(HARD if hard else EASY, k=25)
    identity = hashlib.sha256(str(number).encode()).hexdigest()
    return AcceptedPrompt(
        id=f"p{number}", prompt_id=identity, messages=[Message("user", " ".join(words))], ts=0, split=side
    )


def difficulty(number: int, hard: bool) -> float:
    return (7.0 if hard else 2.5) + random.Random(-number).uniform(-0.5, 0.5)


def screen(**changes: Any) -> Screen:
    settings = ScreenSettings.model_validate({"enabled": True, "warmup": 200, **changes})
    made = Screen(settings, BufferSettings(), Metrics(CollectorRegistry()))
    made.threshold = THRESHOLD
    return made


def taught(count: int = 800, **changes: Any) -> Screen:
    made = screen(**changes)
    for number in range(count):
        hard = number % 4 == 0
        p = prompt(number, hard)
        made.learn(made.look(p), p, difficulty(number, hard))
    return made


def test_it_skips_what_is_surely_easy_and_nothing_that_is_hard() -> None:
    made = taught()
    assert made.trusted
    looks = {hard: [made.look(prompt(n, hard)) for n in range(10_000, 10_200)] for hard in (True, False)}
    assert not any(look.sure or look.skip for look in looks[True])
    assert all(look.sure for look in looks[False])
    judged_anyway = sum(not look.skip for look in looks[False])
    assert 5 <= judged_anyway <= 40, "about a tenth is explored"


def test_nothing_is_skipped_before_it_has_learned_and_measured() -> None:
    made = screen(warmup=200, min_recall=0.95)
    skipped_at = []
    for number in range(600):
        hard = number % 4 == 0
        p = prompt(number, hard)
        look = made.look(p)
        if look.skip:
            skipped_at.append(number)
        else:
            made.learn(look, p, difficulty(number, hard))
    assert skipped_at
    # 200 ratings with a prediction, and then 52 prompts over the threshold, a quarter of all.
    assert skipped_at[0] >= 200 + 4 * 50


def test_without_a_threshold_nothing_is_skipped() -> None:
    made = taught()
    made.threshold = None
    assert not any(made.look(prompt(n, False)).skip for n in range(10_000, 10_100))


def test_a_recall_that_falls_takes_the_trust_away() -> None:
    made = taught()
    assert made.trusted
    for number in range(20_000, 24_000):  # the judge has changed its mind: what looks easy is hard
        p = prompt(number, False)
        look = made.look(p)
        if not look.skip:
            made.learn(look, p, 8.0)
        if not made.trusted:
            return
    pytest.fail("still trusted")


def test_only_what_is_judged_anyway_counts() -> None:
    made = taught(explore_share=0.1)
    looks = [made.look(prompt(n, True)) for n in range(30_000, 30_400)]
    assert 15 <= sum(look.counts for look in looks) <= 70


def test_recall_needs_enough_prompts() -> None:
    recall = Recall(0.95)
    for _ in range(51):
        recall.add(True)
        assert not recall.proven
    recall.add(True)
    assert recall.proven
    assert (recall.value, recall.positives) == (1.0, 52)
    for _ in range(5):
        recall.add(False)
    assert not recall.proven


def test_the_margin_covers_its_quantile() -> None:
    margin = Margin(0.9, least=100)
    rng = random.Random(1)
    for n in range(1000):
        assert (margin.value is None) == (n < 100)
        margin.add(0.0, rng.uniform(-1, 1))
    assert margin.value == pytest.approx(0.8, abs=0.06)


def test_exploring_is_by_hash_and_has_nothing_to_do_with_the_split() -> None:
    ids = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(5000)]
    assert [explored(i, 0.3) for i in ids] == [explored(i, 0.3) for i in ids]
    assert sum(explored(i, 0.3) for i in ids) / 5000 == pytest.approx(0.3, abs=0.03)
    held_out = [i for i in ids if split(i, 0.3) == "eval"]
    assert sum(explored(i, 0.3) for i in held_out) / len(held_out) == pytest.approx(0.3, abs=0.05)


class Asked:
    """A judge that counts."""

    identity = "j"

    def __init__(self) -> None:
        self.count = 0

    async def rate(self, messages: list[Message]) -> Rating:
        self.count += 1
        hard = messages[0].content.split()[0] in HARD
        return Rating(7.0 if hard else 2.5, 8.0, "math", 1.0, 10)


class Sent:
    def __init__(self) -> None:
        self.records: list[tuple[str, Any]] = []

    async def send(self, topic: str, value: Any, **_: Any) -> None:
        self.records.append((topic, value))


async def test_a_skipped_prompt_has_its_outcome_and_the_held_out_are_always_judged() -> None:
    import msgspec

    topics, judge, sent = topic_names(KafkaSettings()), Asked(), Sent()
    hop = Score(topics, judge=judge, producer=sent, now_ms=lambda: 5, screen=taught())  # type: ignore[arg-type]
    for n, side in ((40_000, "train"), (40_001, "train"), (40_002, "eval"), (40_003, "eval")):
        value = msgspec.json.encode(prompt(n, False, side))  # type: ignore[arg-type]
        outcome = await hop(
            Inbound(topic=topics.accepted, partition=0, offset=n, value=value, headers=(), timestamp_ms=0)
        )
        skipped = side == "train" and not explored(prompt(n, False).prompt_id, 0.1)
        assert outcome == ("predicted_below" if skipped else "scored")
    kinds = [(topic, type(value)) for topic, value in sent.records]
    assert kinds.count((topics.scored, ScoredPrompt)) == judge.count >= 2
    told = [value for topic, value in sent.records if topic == topics.curated]
    assert told and all(isinstance(v, CuratedOutcome) and v.threshold == THRESHOLD and v.ts == 5 for v in told)
    assert "margin" in (told[0].detail or "")
