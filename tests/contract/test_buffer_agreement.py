"""Any sequence of offers, replays, removals, claims and answers: Redis and the reference agree, and invariants hold."""

import asyncio
import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.buffer.base import Buffer, BufferGap, BufferRules, Offer, Position
from streams.buffer.generations import GenerationState
from streams.buffer.memory import MemoryBuffer
from streams.buffer.minhash import alike, conversation_text, sketch
from streams.buffer.rank import order
from streams.buffer.redis import RedisBuffer
from streams.records import Candidate, CuratedOutcome, Member
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import HandClock, offer, twin

rule_sets = st.builds(
    BufferRules,
    capacity=st.integers(1, 12),
    category_share=st.sampled_from([0.2, 0.5, 1.0]),
    near_duplicate=st.sampled_from([None, 0.5, 0.8]),
)
ids = st.integers(0, 40)
ranks = st.sampled_from([-3.5, -0.0, 0.0, 1e-300, 1.0, 2.0, 2.0000000000000004, 3.0, 5.5, 1e300])


@st.composite
def records(draw: st.DrawFn) -> tuple[int, float]:
    """A prompt (its text and category follow from its number) and its rank key."""
    return draw(ids), draw(ranks)


@dataclass
class Offers:
    batch: list[tuple[int, float]]
    back: int = 0
    """From how many offsets before the next one: over 0 is a replay, under 0 a gap."""


@dataclass
class Remove:
    ids: list[int]


@dataclass
class Claim:
    limit: int
    older_than_ms: int | None
    seconds: int


@dataclass
class Attach:
    id: int


@dataclass
class Published:
    ids: list[int] = field(default_factory=list)


steps = st.one_of(
    st.builds(Offers, st.lists(records(), min_size=1, max_size=8), st.integers(-1, 5)),
    st.builds(Offers, st.lists(records(), min_size=1, max_size=8)),
    st.builds(Remove, st.lists(ids, max_size=4)),
    st.builds(Claim, st.integers(1, 4), st.sampled_from([None, 0, 1500, 4000]), st.sampled_from([0, 2])),
    st.builds(Attach, ids),
    st.builds(Published, st.lists(ids, max_size=4)),
)


def make(number: int, rank: float, offset: int) -> Offer:
    """Ids 4n … 4n + 3 are twins; they share the `prompt_id` with nobody."""
    category = "abc"[number % 3]
    return offer(f"id{number}", rank, twin(number // 4, number), category, at=(0, offset))


async def act(buffer: Buffer, step: object, offset: int, now_ms: int) -> object:
    """Does the step; returns what the buffer answered."""
    match step:
        case Offers(batch, back):
            first = max(0, offset - back)
            offers = [make(number, rank, first + i) for i, (number, rank) in enumerate(batch)]
            try:
                return await buffer.offer(offers, [Position(0, first, first + len(batch) - 1)])
            except BufferGap as gap:
                return str(gap)
        case Remove(numbers):
            return await buffer.remove([f"id{n}" for n in numbers])
        case Claim(limit, older, seconds):
            return await buffer.unanswered(limit, None if older is None else now_ms - older, seconds)
        case Attach(number):
            return await buffer.attach(f"id{number}", [Candidate(text="x", reward=1, origin="teacher")])
        case Published(numbers):
            published = {f"id{n}" for n in numbers}
            return await buffer.outbox_done([o for o in await buffer.outbox(1000) if o.id in published])
    raise AssertionError(step)


def check_invariants(rules: BufferRules, members: list[Member], answered: object) -> None:
    """Capacity, caps, no two alike, hardest first; an admitted record is a member unless it went in the same batch."""
    assert len(members) <= rules.capacity
    categories = [m.prompt.category for m in members]
    assert all(categories.count(c) <= rules.category_cap for c in set(categories))
    if rules.near_duplicate is not None:
        near = rules.near_duplicate
        sketches = [sketch(conversation_text(m.prompt.messages), near) for m in members]
        assert not any(alike(a, b, near) for i, a in enumerate(sketches) for b in sketches[:i])
    orders = [order(m.rank_key, m.prompt.prompt_id, m.prompt.id) for m in members]
    assert orders == sorted(orders, reverse=True) and len(set(orders)) == len(orders)
    if isinstance(answered, list) and answered and isinstance(answered[0], CuratedOutcome):
        admitted = {o.id for o in answered if o.outcome == "admitted"}
        evicted = {o.id for o in answered if o.outcome == "evicted"}
        assert admitted - evicted <= {m.prompt.id for m in members}


async def agree(url: str, rules: BufferRules, script: list[object]) -> None:
    clock = HandClock()
    client = connect(RedisSettings(url=url))
    reference = MemoryBuffer(rules, clock)
    real = RedisBuffer(client, f"test-{uuid.uuid4().hex}", "main", rules, clock)
    try:
        for step in script:
            clock.now += 1
            offset = (await reference.positions()).get(0, -1) + 1
            answered = await act(reference, step, offset, int(clock.now * 1000))
            assert await act(real, step, offset, int(clock.now * 1000)) == answered
            members = await reference.top(100)
            assert await real.top(100) == members
            assert await real.stats() == await reference.stats()
            assert await real.positions() == await reference.positions()
            check_invariants(rules, members, answered)
        by_id = {o.id: o for o in await reference.outbox(1000)}
        assert {o.id: o for o in await real.outbox(1000)} == by_id
        # Nothing of a member stays behind when it leaves.
        await real.remove([m.prompt.id for m in members])
        left = {key.rsplit(":")[-1] for key in real._keys(GenerationState()) if await client.exists(key)}
        assert left <= {"meta", "outbox", "positions", "generations"}
    finally:
        await real.clear()
        await client.aclose()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rules=rule_sets, script=st.lists(steps, min_size=1, max_size=25))
def test_redis_and_the_reference_agree(redis_url: str, rules: BufferRules, script: list[object]) -> None:
    asyncio.run(agree(redis_url, rules, script))


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.integers(1, 10),
    offers=st.lists(st.tuples(ids, ranks), max_size=40, unique_by=lambda pair: pair[0]),
    batch=st.integers(1, 9),
    repeats=st.integers(0, 2),
)
def test_without_twins_and_caps_the_members_are_the_top_k(
    capacity: int, offers: list[tuple[int, float]], batch: int, repeats: int
) -> None:
    async def run() -> None:
        buffer = MemoryBuffer(BufferRules(capacity))
        made = [make(number, rank, i) for i, (number, rank) in enumerate(offers)]
        for start in range(0, len(made), batch):
            for _ in range(1 + repeats):
                await buffer.offer(made[start : start + batch], [])
        best = sorted(made, key=lambda o: order(o.rank_key, o.prompt.prompt_id, o.prompt.id), reverse=True)[:capacity]
        assert [m.prompt.id for m in await buffer.top(100)] == [o.prompt.id for o in best]

    asyncio.run(run())


def test_the_law_can_fail() -> None:
    """The invariants notice a buffer that breaks them."""
    members = [Member(prompt=offer(i, 2.0, twin(1, v)).prompt, rank_key=2.0, admitted_at=0) for v, i in enumerate("ab")]
    for rules in (BufferRules(1), BufferRules(2, 0.5), BufferRules(2, 1.0, 0.8)):
        with pytest.raises(AssertionError):
            check_invariants(rules, members, None)
