"""After any sequence of offers the buffer obeys every rule; each outcome tells the value that decided."""

import asyncio
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.buffer.base import Buffer, BufferRules, Offer
from streams.buffer.memory import MemoryBuffer
from streams.buffer.minhash import SLOTS, alike, conversation_text, equal_slots, sketch
from streams.buffer.rank import order
from streams.buffer.redis import RedisBuffer
from streams.records import CuratedOutcome, Member
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.contract.test_buffer import Make
from tests.support.prompts import HandClock, offer, text, twin

RULES = st.builds(
    BufferRules,
    capacity=st.integers(1, 10),
    category_share=st.sampled_from([0.2, 0.34, 0.5, 1.0]),
    near_duplicate=st.sampled_from([None, 0.4, 0.7, 0.9]),
)
# A few originals, and of each a chain of versions that grow less alike: words changed one after the other.
OFFERS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 24), st.sampled_from([1.0, 2, 3, 3.5, 5, 8]), st.sampled_from("abc")),
    min_size=1,
    max_size=50,
)  # fmt: skip


def version(original: int, changed: int) -> str:
    """The original with as many of its 48 words changed, each second one."""
    words = text(original, 48).split()
    for i in range(changed):
        words[2 * i] = f"other{original}x{i}"
    return " ".join(words)


def place_of(o: Offer) -> bytes:
    return order(o.rank_key, o.prompt.prompt_id, o.prompt.id)


def check(rules: BufferRules, members: list[Member]) -> None:
    """Every rule about the members, by the definition and not by the code under test."""
    assert len(members) <= rules.capacity
    categories = [m.prompt.category for m in members]
    assert all(
        categories.count(c) <= max(1, int(rules.capacity * rules.category_share + 1e-9)) for c in set(categories)
    )
    near = rules.near_duplicate
    if near is not None:
        sketches = [sketch(conversation_text(m.prompt.messages), near) for m in members]
        for i, a in enumerate(sketches):
            for b in sketches[:i]:
                shares_a_band = any(a.bands[k : k + 4] == b.bands[k : k + 4] for k in range(0, len(a.bands), 4))
                assert not (
                    shares_a_band and sum(x == y for x, y in zip(a.slots, b.slots, strict=True)) >= near * SLOTS
                )


def check_step(
    rules: BufferRules, one: Offer, before: list[Member], after: list[Member], told: list[CuratedOutcome]
) -> None:
    """What one offer did: nothing but what its outcomes say, and never for a weaker newcomer."""
    outcome, gone = told[0], {o.id: o for o in told[1:]}
    had, has = ({m.prompt.id: m for m in members} for members in (before, after))
    threshold = min((m.rank_key for m in before), default=None) if len(before) >= rules.capacity else None
    assert outcome.threshold == threshold
    new = one.prompt.id not in had
    assert set(has) == (set(had) | ({one.prompt.id} if outcome.outcome == "admitted" else set())) - set(gone)
    assert set(gone) <= set(had) and all(o.outcome == "evicted" for o in gone.values())
    if outcome.outcome != "admitted" or not new:
        assert not gone
        return
    # The threshold never admits what it would evict: whoever had to go is weaker than who came.
    assert threshold is None or one.rank_key >= threshold
    for id, eviction in gone.items():
        weaker = order(had[id].rank_key, had[id].prompt.prompt_id, id)
        assert weaker < place_of(one)
        assert eviction.by == one.prompt.id
        if eviction.detail is None:  # for want of room: nobody who stays is weaker
            assert all(weaker < order(m.rank_key, m.prompt.prompt_id, m.prompt.id) for m in after)


async def obey(buffer: Buffer, rules: BufferRules, script: list[tuple[int, int, float, str]]) -> None:
    for number, (original, changed, rank, category) in enumerate(script):
        one = offer(f"id{number}", rank, version(original, changed), category)
        before = await buffer.top(100)
        told = await buffer.offer([one], [])
        after = await buffer.top(100)
        check(rules, after)
        check_step(rules, one, before, after, told)
        for place, member in enumerate(after, start=1):
            assert await buffer.place(member.prompt.id) == place
        gone = [o.id for o in told[1:]]
        if gone and rules.near_duplicate is None:
            # What has just been evicted is refused when it is offered again.
            back = next(m for m in before if m.prompt.id == gone[0])
            again = await buffer.offer([Offer(prompt=back.prompt, rank_key=back.rank_key)], [])
            assert [o.outcome in ("below_threshold", "category_full") for o in again] == [True]


@settings(max_examples=150)
@given(rules=RULES, script=OFFERS)
def test_the_reference_obeys_every_rule(rules: BufferRules, script: list[tuple[int, int, float, str]]) -> None:
    asyncio.run(obey(MemoryBuffer(rules, HandClock()), rules, script))


@settings(max_examples=25)
@given(rules=RULES, script=OFFERS)
def test_redis_obeys_every_rule(redis_url: str, rules: BufferRules, script: list[tuple[int, int, float, str]]) -> None:
    async def run() -> None:
        client = connect(RedisSettings(url=redis_url))
        buffer = RedisBuffer(client, f"test-{uuid.uuid4().hex}", "main", rules, HandClock())
        try:
            await obey(buffer, rules, script)
        finally:
            await buffer.clear()
            await client.aclose()

    asyncio.run(run())


def test_the_rules_can_be_broken() -> None:
    """The checks notice members that break them."""
    members = [Member(prompt=offer(i, 2.0, twin(1, v)).prompt, rank_key=2.0, admitted_at=0) for v, i in enumerate("ab")]
    for rules in (BufferRules(1), BufferRules(2, 0.5), BufferRules(2, 1.0, 0.8)):
        with pytest.raises(AssertionError):
            check(rules, members)


async def test_refusals_and_evictions_tell_the_value_that_decided(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(4, category_share=0.5, near_duplicate=0.7))
    hard, soft = offer("hard", 5, twin(1, 1)), offer("soft", 4, twin(1, 2))
    await buffer.offer([hard, offer("b", 3)], [])
    [refused] = await buffer.offer([soft], [])
    a, b = (sketch(conversation_text(o.prompt.messages), 0.7) for o in (hard, soft))
    assert alike(a, b, 0.7)
    assert (refused.value, refused.bound) == (equal_slots(a, b) / SLOTS, 0.7)
    [full] = await buffer.offer([offer("c", 2)], [])
    assert (full.outcome, full.detail, full.value, full.bound) == ("category_full", "math", 2, 2)
    told = await buffer.offer([offer("harder", 6, twin(1, 3))], [])
    assert [(o.id, o.outcome, o.detail, o.by) for o in told[1:]] == [("hard", "evicted", "harder", "harder")]
    assert [(o.id, o.by) for o in await buffer.outbox(9)] == [("hard", "harder")]
    small = make_buffer(BufferRules(1))
    await small.clear()
    told = await small.offer([offer("x", 1, category="code"), offer("y", 2)], [])
    assert [(o.id, o.detail, o.by) for o in told if o.outcome == "evicted"] == [("x", None, "y")]


async def test_place_in_the_ranking(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(10))
    await buffer.offer([offer("a", 1), offer("b", 3), offer("c", 3)], [])
    ranked = [m.prompt.id for m in await buffer.top(10)]
    assert [await buffer.place(id) for id in ranked] == [1, 2, 3]
    assert await buffer.place("nobody") is None
