"""The buffer goes through another judge: which record goes where, and what the background work does, step by step."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from agents.curate import Curate, Curator, positions_of
from agents.rescore import AGAIN_S, Rescore
from agents.scored_log import Scored, read_scored
from agents.trigger import policy_state
from streams.app import Inbound
from streams.buffer.base import BufferRules
from streams.buffer.memory_generations import MemoryGenerations
from streams.errors import Fatal, InvalidRecord, Transient
from streams.judge import Rating
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, CuratedOutcome, Message, ScoredPrompt, encode
from streams.settings import BufferSettings, KafkaSettings
from streams.topics import topic_names
from streams.training_orders import Orders
from streams.training_state import TrainingState
from tests.support.prompts import HandClock, prompt

TOPICS = topic_names(KafkaSettings())


class Broker:
    """Keeps what is sent; `prompts.scored` is a log of one partition that `curate` has not read to its end."""

    def __init__(self) -> None:
        self.sent: dict[str, list[Any]] = {}
        self.read = 0

    async def send(self, topic: str, record: msgspec.Struct, key: str, headers: object = None) -> None:
        self.sent.setdefault(topic, []).append(record)

    def of(self, topic: str) -> list[Any]:
        return self.sent.get(topic, [])

    def unread(self) -> list[Scored]:
        log = self.of(TOPICS.scored)
        found = [read_scored(0, i, encode(log[i])) for i in range(self.read, len(log))]
        self.read = len(log)
        return found


class FakeJudge:
    """Rates by a table; `trouble` is raised instead, once for each of its entries."""

    def __init__(self, identity: str, ratings: dict[str, float]) -> None:
        self.identity = identity
        self.ratings = ratings
        self.trouble: list[Exception] = []
        self.rated: list[str] = []

    async def rate(self, messages: Sequence[Message]) -> Rating:
        if self.trouble:
            raise self.trouble.pop(0)
        text = messages[-1].content
        self.rated.append(text)
        return Rating(difficulty=self.ratings[text], quality=6.0, category="math", label_mass=0.9, seen_chars=1)


class FakeLease:
    def __init__(self) -> None:
        self.ours = True

    async def hold(self) -> int | None:
        return 1 if self.ours else None

    async def renew(self) -> bool:
        return self.ours

    async def release(self) -> bool:
        return True


class World:
    """A buffer of three, the log, and `curate`."""

    def __init__(self, only: str | None = None) -> None:
        self.clock = HandClock()
        self.broker = Broker()
        self.metrics = Metrics(CollectorRegistry())
        self.generations = MemoryGenerations(BufferRules(3), BufferRules(5), self.clock)
        self.curator = Curator(
            BufferSettings(capacity=3, near_duplicate=None),
            self.generations.main,
            self.generations.held_out,
            lambda: 7,
            generations=self.generations,
            only=only,
        )

    def rescore(self, judge: FakeJudge, lease: FakeLease | None = None) -> Rescore:
        return Rescore(
            TOPICS,
            judge=judge,  # type: ignore[arg-type]
            generations=self.generations,
            lease=lease or FakeLease(),  # type: ignore[arg-type]
            producer=self.broker,  # type: ignore[arg-type]
            metrics=self.metrics,
            concurrency=2,
            clock=self.clock,
            now_ms=lambda: 7,
        )

    async def put(self, *prompts: ScoredPrompt) -> list[str]:
        """Into the log, and applied: the outcomes."""
        for one in prompts:
            await self.broker.send(TOPICS.scored, one, one.id)
        return await self.curate()

    async def curate(self) -> list[str]:
        records = self.broker.unread()
        outcomes = await self.curator.apply(records, positions_of(records))
        return [o.outcome for o in outcomes if o is not None]

    async def members(self, next: bool = False) -> dict[str, float]:
        buffer = self.generations.next_main if next else self.generations.main
        return {m.prompt.id: m.prompt.difficulty for m in await buffer.top(9)}


def rated(id: str, difficulty: float, judge: str = "old", split: str = "train") -> ScoredPrompt:
    return msgspec.structs.replace(prompt(id, difficulty, id, judge=judge), split=split)


# Where a record goes


async def test_each_record_goes_to_its_judges_generation() -> None:
    world = World()
    assert await world.put(rated("a", 5), rated("b", 6), rated("c", 2, "new"), rated("d", 1)) == ["admitted"] * 4
    state = await world.generations.read()
    assert (state.judge, state.next_judge) == ("old", "new")
    assert await world.members() == {"b": 6, "a": 5, "d": 1}
    assert await world.members(next=True) == {"c": 2}
    assert await world.generations.main.positions() == await world.generations.next_main.positions() == {0: 3}
    # The thresholds are apart: 5.5 is enough for the full one, 1.5 for the one with room.
    assert await world.put(rated("e", 1.5, "new"), rated("f", 5.5), rated("g", 0.5)) == [
        "admitted",
        "admitted",
        "below_threshold",
    ]


async def test_the_judge_of_the_first_record_is_in_force_even_in_a_batch_of_two_judges() -> None:
    world = World()
    assert await world.put(rated("a", 5, split="eval"), rated("b", 6, "new"), rated("c", 7)) == [
        "held_out",
        "admitted",
        "admitted",
    ]
    assert await world.members() == {"c": 7}
    assert await world.members(next=True) == {"b": 6}
    assert [m.prompt.id for m in await world.generations.held_out.top(5)] == ["a"]


async def test_a_record_of_a_judge_that_was_replaced_is_rated_again() -> None:
    world = World()
    await world.put(rated("a", 5), rated("a", 3, "new"))
    assert await world.generations.switch()
    curate = Curate(
        world.curator,
        [world.generations.main],
        TOPICS,
        log_of_scored=None,  # type: ignore[arg-type]
        producer=world.broker,  # type: ignore[arg-type]
        metrics=world.metrics,
    )

    async def handle(record: ScoredPrompt, offset: int) -> str:
        return await curate(Inbound(TOPICS.scored, 0, offset, encode(record), 0, ()))

    late = msgspec.structs.replace(rated("late", 9), metadata={"k": "v"}, redacted={"email": 1})
    assert await handle(late, 2) == "other_judge"
    assert await handle(rated("b", 4, "new"), 3) == "admitted"
    [again] = world.broker.of(TOPICS.accepted)
    assert type(again) is AcceptedPrompt
    assert (again.id, again.metadata, again.redacted) == ("late", {"k": "v"}, {"email": 1})
    assert [o.id for o in world.broker.of(TOPICS.curated)] == ["b"]
    assert await world.members() == {"b": 4, "a": 3}
    assert await world.generations.main.positions() == {0: 3}


async def test_a_rebuild_takes_one_judges_records_and_those_of_the_next() -> None:
    log = [rated("a", 5), rated("b", 6), rated("b", 2, "new"), rated("c", 3, "new"), rated("x", 9, "older")]
    world = World(only="new")
    assert await world.put(*log) == ["other_judge", "other_judge", "admitted", "admitted", "other_judge"]
    assert await world.members() == {"c": 3, "b": 2}
    assert (await world.generations.read()).next is None
    world = World()
    await world.put(log[0])
    await world.generations.begin("new")
    world.curator = Curator(
        BufferSettings(), world.generations.main, world.generations.held_out, lambda: 7,
        generations=world.generations, only="old",
    )  # fmt: skip
    assert await world.put(*log[1:]) == ["admitted"] * 3 + ["other_judge"]
    assert await world.members(next=True) == {"c": 3, "b": 2}
    assert len(await world.generations.todo("main")) == 1, "b has been rated by the next judge, a has not"


# The work in the background


async def test_the_buffer_goes_over_when_every_member_has_been_rated() -> None:
    world = World()
    await world.put(rated("a", 5), rated("b", 6), rated("held", 4, split="eval"))
    judge = FakeJudge("new", {"a": 9, "b": 2, "held": 3})
    rescore = world.rescore(judge)
    state = await rescore.once()
    assert (state.next_judge, state.left, state.total) == ("new", 3, 3)
    assert judge.rated == ["b", "a", "held"], "hardest first"
    assert await world.members() == {"b": 6, "a": 5}, "the old generation serves until all is applied"
    # A new arrival, and one more that the old judge has rated.
    outcomes = await world.put(rated("n", 1, "new"), rated("late", 5.5))
    assert outcomes == ["admitted", "admitted", "held_out", "admitted", "admitted"]
    judge.ratings["late"] = 4
    state = await rescore.once()
    assert state.next is not None and state.left == 1
    assert judge.rated[3:] == ["late"], "nobody is rated twice"
    assert await world.curate() == ["admitted"]
    state = await rescore.once()
    assert (state.judge, state.next, state.retired) == ("new", None, {"old"})
    assert await world.members() == {"a": 9, "late": 4, "b": 2}, "n was the weakest of four"
    assert [m.prompt.difficulty for m in await world.generations.held_out.top(3)] == [3]
    assert world.metrics.registry.get_sample_value("haypile_generation_switches_total") == 1
    assert (await rescore.once()).judge == "new"
    assert len(judge.rated) == 4


async def test_one_that_died_is_continued_by_another() -> None:
    world = World()
    await world.put(rated("a", 5), rated("b", 6), rated("c", 7))
    judge = FakeJudge("new", {"a": 3, "b": 2, "c": 1})
    await world.rescore(judge).once()
    world.broker.read = len(world.broker.of(TOPICS.scored)) - 1  # curate has had all but the last
    world.broker.read -= 2
    half = world.broker.unread()[:2]
    await world.curator.apply(half, positions_of(half))
    world.broker.read -= 1
    assert (await world.generations.read()).left == 1
    second = world.rescore(judge)
    await second.once()
    assert judge.rated == ["c", "b", "a", "a"], "only what was not known to be done is done again"
    assert await world.curate() == ["admitted", "admitted"]
    assert (await second.once()).judge == "new"
    assert await world.members() == {"a": 3, "b": 2, "c": 1}


async def test_an_outage_of_the_judge_is_not_the_end_of_it() -> None:
    world = World()
    await world.put(rated("a", 5), rated("b", 6))
    judge = FakeJudge("new", {"a": 3, "b": 2})
    judge.trouble = [Transient("vLLM is away")]
    rescore = world.rescore(judge)
    with pytest.raises(Transient):
        await rescore.once()
    await rescore.once()
    await world.curate()
    assert (await rescore.once()).judge == "new"
    assert await world.members() == {"a": 3, "b": 2}


async def test_a_member_that_the_next_judge_cannot_read_has_an_outcome_and_does_not_hold_up_the_others() -> None:
    world = World()
    await world.put(rated("a", 5), rated("b", 6))
    judge = FakeJudge("new", {"a": 3, "b": 2})
    judge.trouble = [InvalidRecord("judge_unreadable", "no labels")]
    rescore = world.rescore(judge)
    await rescore.once()
    assert world.broker.of(TOPICS.curated) == [
        CuratedOutcome(id="b", outcome="unreadable_again", detail="judge_unreadable", judge="new", ts=7)
    ]
    await world.curate()
    assert (await rescore.once()).judge == "new"
    assert await world.members() == {"a": 3}


async def test_only_the_holder_of_the_lease_rates() -> None:
    world = World()
    await world.put(rated("a", 5))
    lease = FakeLease()
    lease.ours = False
    judge = FakeJudge("new", {"a": 3})
    rescore = world.rescore(judge, lease)
    assert (await rescore.once()).next_judge == "new"
    assert judge.rated == []
    lease.ours = True
    await rescore.once()
    assert judge.rated == ["a"]


async def test_a_member_whose_rating_does_not_arrive_is_rated_again_after_a_while() -> None:
    world = World()
    await world.put(rated("a", 5))
    judge = FakeJudge("new", {"a": 3})
    rescore = world.rescore(judge)
    await rescore.once()
    world.broker.of(TOPICS.scored).pop()  # lost
    world.clock.now += AGAIN_S - 1
    await rescore.once()
    assert judge.rated == ["a"]
    world.clock.now += 2
    await rescore.once()
    await world.curate()
    assert judge.rated == ["a", "a"]
    assert (await rescore.once()).judge == "new"


async def test_the_judge_in_force_does_nothing_and_one_that_was_replaced_stops_the_process() -> None:
    world = World()
    old, new = (world.rescore(FakeJudge(name, {"a": 3})) for name in ("old", "new"))
    assert (await old.once()).judge is None
    await world.put(rated("a", 5))
    assert (await old.once()).next is None
    await new.once()
    assert (await old.once()).next_judge == "new", "until the switch its ratings count"
    await world.curate()
    await new.once()
    with pytest.raises(Fatal, match=r"was replaced by new.*haypile rescore"):
        await old.once()
    assert (await world.generations.read()).next is None


async def test_it_stops_when_told_and_looks_again_when_the_generations_move() -> None:
    world = World()
    await world.put(rated("a", 5), rated("b", 4))
    judge = FakeJudge("new", {"a": 3, "b": 2})
    rescore = world.rescore(judge)
    stop = asyncio.Event()
    original = world.generations.waiting
    calls = 0

    async def moving(name: Any, keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await world.generations.cancel()  # its judge is retired with it: the next look ends in Fatal
        return await original(name, keys)

    world.generations.waiting = moving  # type: ignore[method-assign]
    with pytest.raises(Fatal, match="was replaced by old"):
        await rescore.run(stop)
    stop.set()
    await rescore.run(stop)


async def test_the_trigger_does_not_compare_the_difficulties_of_two_judges() -> None:
    world = World()
    await world.put(rated("a", 5))
    stats = await world.generations.main.stats()
    state = TrainingState(histogram_at_last_run=[1] * 16, judge_at_last_run="old")
    assert policy_state(stats, state, {}, Orders(), 1).histogram_at_last_run == [1] * 16
    state.judge_at_last_run = "older"
    assert policy_state(stats, state, {}, Orders(), 1).histogram_at_last_run is None
