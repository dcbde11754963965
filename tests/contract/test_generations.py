"""What the generations of a buffer promise (`streams.buffer.generations`), over the reference and over a real Redis."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.buffer.base import Buffer, BufferRules, JudgeMismatch, Offer, Position
from streams.buffer.generations import GenerationMoved, Generations
from streams.buffer.memory_generations import MemoryGenerations
from streams.buffer.redis_generations import RedisGenerations
from streams.errors import Transient
from streams.records import Candidate, CuratedOutcome
from streams.redis_client import connect
from streams.settings import RedisSettings
from tests.support.prompts import HandClock, offer, twin

Make = Callable[[BufferRules], Any]
ANSWERS = [Candidate(text="so it is", reward=7.5, origin="teacher", model="t")]


@pytest_asyncio.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest, clock: HandClock) -> AsyncIterator[Make]:
    """Makes the generations of this test; the held-out buffer has room for 5."""
    if request.param == "memory":
        yield lambda rules: MemoryGenerations(rules, BufferRules(5), clock)
        return
    client = connect(RedisSettings(url=request.getfixturevalue("redis_url")))
    namespace = request.getfixturevalue("namespace")
    yield lambda rules: RedisGenerations(client, namespace, rules, BufferRules(5), clock)
    await client.aclose()


def old(id: str, rank: float = 5.0, content: str | None = None, at: tuple[int, int] = (-1, -1)) -> Offer:
    return offer(id, rank, content, judge="old", at=at)


def new(id: str, rank: float = 5.0, content: str | None = None, at: tuple[int, int] = (-1, -1)) -> Offer:
    return offer(id, rank, content, judge="new", at=at)


async def ids(buffer: Buffer) -> list[str]:
    return [m.prompt.id for m in await buffer.top(100)]


async def listed(generations: Generations) -> list[str]:
    """Ids on the list, the main buffer's first."""
    found = []
    for name in ("main", "eval"):
        members = await generations.waiting(name, await generations.todo(name))  # type: ignore[arg-type]
        found += [m.prompt.id for m in members]
    return found


async def test_a_generation_is_begun_for_another_judge_only(make: Make) -> None:
    generations = make(BufferRules(10))
    assert await generations.begin("new") == "empty"
    await generations.main.offer([old("a")], [])
    assert (await generations.read()).judge == "old"
    assert await generations.begin("old") == "same"
    before = await generations.read()
    assert before.next is None
    assert await generations.begin("new") == "begun"
    state = await generations.read()
    assert (state.judge, state.next_judge, state.total, state.left) == ("old", "new", 1, 1)
    assert state.epoch > before.epoch and state.next != state.active
    assert await generations.begin("new") == "running"
    assert await generations.begin("new", forced=True) == "running"
    assert (await generations.read()) == state


async def test_the_main_and_the_held_out_buffer_have_one_judge(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.held_out.offer([old("e")], [])
    with pytest.raises(JudgeMismatch):
        await generations.main.offer([new("a")], [])
    await generations.begin("new")
    with pytest.raises(JudgeMismatch):
        await generations.next_main.offer([old("a")], [])
    with pytest.raises(JudgeMismatch):
        await generations.held_out.offer([new("a")], [])
    assert await ids(generations.main) == [] == await ids(generations.next_main)


async def test_who_was_offered_to_the_next_generation_is_off_the_list_whatever_became_of_it(make: Make) -> None:
    generations = make(BufferRules(3, near_duplicate=0.8))
    await generations.main.offer([old("a", 5), old("b", 6), old("c", 7)], [])
    await generations.held_out.offer([old("e", 5)], [])
    await generations.begin("new")
    assert await listed(generations) == ["c", "b", "a", "e"]
    refusal = CuratedOutcome(id="c", outcome="low_quality", ts=1)
    result = await generations.next_main.offer(
        [new("x", 9), new("y", 8), new("z", 7), new("a", 1), offer("c", 3, judge="new", refusal=refusal)], []
    )
    assert [o.outcome for o in result] == ["admitted"] * 3 + ["below_threshold", "low_quality"]
    assert {o.judge for o in result} == {"new"}
    assert await listed(generations) == ["b", "e"]
    await generations.skip("main", ["b", "unknown"])
    assert not await generations.switch()
    await generations.next_held_out.offer([new("e", 2)], [])
    assert (await generations.read()).left == 0
    assert await generations.switch()
    assert await ids(generations.main) == ["x", "y", "z"]
    assert [m.prompt.judge for m in await generations.held_out.top(5)] == ["new"]


async def test_who_joins_the_active_generation_meanwhile_is_put_on_the_list_and_who_leaves_is_taken_off(
    make: Make,
) -> None:
    generations = make(BufferRules(2))
    await generations.main.offer([old("a", 5), old("b", 6)], [])
    await generations.begin("new")
    result = await generations.main.offer([old("c", 7), old("d", 1), old("e", 6.5), old("f", 8)], [])
    assert [(o.id, o.outcome) for o in result if o.outcome == "evicted"] == [
        ("a", "evicted"),
        ("b", "evicted"),
        ("e", "evicted"),
    ]
    assert await listed(generations) == ["f", "c"]
    await generations.main.offer([old("c", 7)], [])  # a member already
    assert await generations.main.remove(["f"]) == 1
    assert await listed(generations) == ["c"]
    await generations.next_main.offer([new("c", 2)], [])
    await generations.main.offer([old("c", 7)], [])
    assert await listed(generations) == []


async def test_a_switch_is_refused_while_somebody_is_on_the_list(make: Make) -> None:
    generations = make(BufferRules(10))
    assert not await generations.switch()
    await generations.main.offer([old("a", 5, at=(0, 0)), old("b", 6, at=(0, 1))], [Position(0, 0, 1)])
    await generations.begin("new")
    assert await generations.next_main.positions() == {0: 1}, "it starts where the active one is"
    batch = [new("a", 9, at=(0, 2)), new("n", 3, at=(0, 3))]
    await generations.next_main.offer(batch, [Position(0, 2, 3)])
    await generations.main.offer([], [Position(0, 2, 3)])
    assert not await generations.switch()
    assert await ids(generations.main) == ["b", "a"], "readers see the active one"
    assert (await generations.main.stats()).judge == "old"
    await generations.next_main.offer([new("b", 4, at=(0, 4))], [Position(0, 4, 4)])
    assert await generations.switch()
    state = await generations.read()
    assert (state.judge, state.next, state.next_judge, state.left) == ("new", None, None, 0)
    assert state.retired == {"old"}
    assert await ids(generations.main) == ["a", "b", "n"]
    assert await generations.main.positions() == {0: 4}
    assert (await generations.main.stats()).judge == "new"
    assert not await generations.switch()
    with pytest.raises(GenerationMoved):
        await generations.next_main.offer([new("x")], [])
    with pytest.raises(JudgeMismatch):
        await generations.main.offer([old("x")], [])


async def test_what_a_member_has_stays_with_it(make: Make, clock: HandClock) -> None:
    generations = make(BufferRules(10, near_duplicate=0.8))
    await generations.main.offer([old("a", 5, twin(1, 1)), old("s", 4, twin(1, 2)), old("b", 6), old("c", 7)], [])
    since = int(clock.now * 1000)
    await generations.main.attach("a", ANSWERS)
    clock.now += 60
    await generations.begin("new")
    clock.now += 60
    await generations.main.offer([old("late", 8)], [])
    late = int(clock.now * 1000)
    clock.now += 60
    await generations.next_main.offer(
        [new("a", 2, twin(1, 1)), new("s", 1, twin(1, 3)), new("b", 3), new("n", 1.5)], []
    )
    await generations.next_main.offer([new("late", 4), new("c", 5)], [])
    assert await generations.main.attach("b", ANSWERS), "answers that come now go to both"
    assert not await generations.main.attach("unknown", ANSWERS)
    before = await generations.main.stats()
    assert await generations.switch()

    members = {m.prompt.id: m for m in await generations.main.top(10)}
    assert members.keys() == {"a", "b", "c", "n", "late"}
    assert members["a"].candidates == members["b"].candidates == ANSWERS
    assert members["a"].near_duplicates == 2, "one before, one by the next judge"
    assert members["a"].admitted_at == members["c"].admitted_at == since
    assert members["late"].admitted_at == late
    assert members["n"].admitted_at == int(clock.now * 1000)
    stats = await generations.main.stats()
    assert stats.answered == 2
    assert [m.prompt.id for m in await generations.main.unanswered(9)] == ["c", "late", "n"]
    # New since before: those that came while it went on, whoever rated them; members that moved over are not new.
    assert (before.admitted_total, stats.admitted_total) == (4, 5)


async def test_a_retired_judge_begins_nothing_by_itself(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.main.offer([old("a")], [])
    await generations.begin("new")
    await generations.next_main.offer([new("a")], [])
    await generations.switch()
    assert await generations.begin("old") == "retired"
    assert (await generations.read()).next is None
    assert await generations.begin("old", forced=True) == "begun"
    assert (await generations.read()).retired == frozenset()
    await generations.next_main.offer([old("a", 3)], [])
    assert await generations.switch()
    assert (await generations.read()).retired == {"new"}
    assert [(m.prompt.id, m.rank_key) for m in await generations.main.top(3)] == [("a", 3)]


async def test_a_third_judge_takes_the_place_of_the_next_one(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.main.offer([old("a"), old("b")], [])
    await generations.begin("new")
    await generations.next_main.offer([new("a")], [])
    assert await generations.begin("third") == "begun"
    state = await generations.read()
    assert (state.judge, state.next_judge, state.left, state.retired) == ("old", "third", 2, {"new"})
    assert await ids(generations.next_main) == []
    with pytest.raises(JudgeMismatch):
        await generations.next_main.offer([new("b")], [])


async def test_a_rescoring_is_given_up(make: Make) -> None:
    generations = make(BufferRules(10))
    assert not await generations.cancel()
    await generations.main.offer([old("a")], [])
    await generations.begin("new")
    assert await generations.cancel()
    state = await generations.read()
    assert (state.judge, state.next, state.left, state.retired) == ("old", None, 0, {"new"})
    assert not await generations.switch()
    await generations.main.offer([old("b")], [])
    assert sorted(await ids(generations.main)) == ["a", "b"]
    assert await generations.todo("main") == []
    with pytest.raises(GenerationMoved):
        await generations.waiting("main", [])


async def test_all_is_rated_anew_by_the_same_judge(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.main.offer([old("a", 5)], [])
    assert await generations.begin("old", forced=True) == "begun"
    for buffer in (generations.next_main, generations.main):
        await buffer.offer([old("a", 7), old("b", 6)], [])
    assert await listed(generations) == []
    assert await generations.switch()
    assert [(m.prompt.id, m.rank_key) for m in await generations.main.top(3)] == [("a", 7), ("b", 6)]
    assert (await generations.read()).retired == frozenset()


async def test_evictions_of_both_generations_are_told(make: Make) -> None:
    generations = make(BufferRules(1))
    await generations.main.offer([old("a", 5)], [])
    await generations.begin("new")
    await generations.next_main.offer([new("a", 1), new("b", 2)], [])
    await generations.main.offer([old("c", 6)], [])
    waiting = await generations.main.outbox(10)
    assert sorted((o.id, o.judge, o.rank_key) for o in waiting) == [("a", "new", 1.0), ("a", "old", 5.0)]
    await generations.main.outbox_done([o for o in waiting if o.judge == "old"])
    await generations.next_main.offer([new("c", 1)], [])
    assert await generations.switch()
    assert [(o.id, o.judge) for o in await generations.main.outbox(10)] == [("a", "new")]


async def test_who_reads_all_members_notices_a_switch(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.main.offer([old("a", 5), old("b", 6), old("c", 7)], [])
    await generations.begin("new")
    await generations.next_main.offer([new("a", 5), new("b", 6), new("c", 7)], [])
    judges = set()
    with pytest.raises(Transient, match="read it again"):
        async for chunk in generations.main.iterate(chunk=1):
            judges |= {m.prompt.judge for m in chunk}
            await generations.switch()
    assert judges == {"old"}
    assert [m.prompt.judge for chunk in [c async for c in generations.main.iterate()] for m in chunk] == ["new"] * 3


async def test_both_are_cleared_and_filled_again(make: Make) -> None:
    generations = make(BufferRules(10))
    await generations.main.offer([old("a", 5, at=(0, 0))], [Position(0, 0, 0)])
    await generations.begin("new")
    await generations.next_main.offer([new("a", 5, at=(0, 1))], [Position(0, 1, 1)])
    for buffer in (generations.main, generations.held_out, generations.next_main, generations.next_held_out):
        await buffer.clear()
    assert await generations.next_main.positions() == await generations.main.positions() == {}
    for one in (old("a", 5, at=(0, 0)), new("a", 5, at=(0, 1)), new("n", 4, at=(0, 2))):
        number = one.offset
        await generations.next_main.offer([one] if one.prompt.judge == "new" else [], [Position(0, number, number)])
        await generations.main.offer([one] if one.prompt.judge == "old" else [], [Position(0, number, number)])
    assert await generations.switch()
    assert await ids(generations.main) == ["a", "n"]


# What only Redis can get wrong


async def test_an_offer_of_one_who_missed_a_change_changes_nothing(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    ours, theirs = (RedisGenerations(client, namespace, BufferRules(10), BufferRules(5)) for _ in range(2))
    await ours.main.offer([old("a", 5, at=(0, 0))], [Position(0, 0, 0)])
    await theirs.known()
    await ours.begin("new")
    with pytest.raises(GenerationMoved):
        await theirs.main.offer([old("b", at=(0, 1))], [Position(0, 1, 1)])
    assert await ours.main.positions() == {0: 0} and await ids(ours.main) == ["a"]
    await theirs.main.offer([old("b", at=(0, 1))], [Position(0, 1, 1)])  # now it knows
    assert len(await ours.todo("main")) == 2
    await ours.next_main.offer([new("a"), new("b")], [])
    assert await ours.switch()
    with pytest.raises(GenerationMoved):
        await theirs.next_main.offer([new("c")], [])
    for read in (theirs.main.top(9), ours.main.top(9)):
        assert {m.prompt.judge for m in await read} == {"new"}
    await client.aclose()


async def test_answers_of_one_who_missed_the_beginning_go_to_both(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    ours, theirs = (RedisGenerations(client, namespace, BufferRules(10), BufferRules(5)) for _ in range(2))
    await ours.main.offer([old("a"), old("b")], [])
    await theirs.main.top(1)
    await ours.begin("new")
    await ours.next_main.offer([new("a"), new("b")], [])
    assert await theirs.main.attach("a", ANSWERS)
    assert await theirs.main.remove(["b"]) == 1
    assert await ours.switch()
    assert [(m.prompt.id, m.candidates) for m in await ours.main.top(9)] == [("a", ANSWERS)]
    await client.aclose()


async def test_a_generation_that_is_over_leaves_nothing_behind(redis_url: str, namespace: str) -> None:
    client = connect(RedisSettings(url=redis_url))
    generations = RedisGenerations(client, namespace, BufferRules(10, 0.5, 0.8), BufferRules(5))
    await generations.main.offer([old("a"), old("b")], [Position(0, 0, 1)])
    await generations.held_out.offer([old("e")], [])
    await generations.begin("third")
    await generations.begin("new")
    await generations.next_main.offer([new("a"), new("b")], [])
    await generations.next_held_out.offer([new("e")], [])
    assert await generations.switch()
    assert await generations.sweep() == 2
    assert await generations.sweep() == 0
    keys = {key.decode() async for key in client.scan_iter(match=f"*{namespace}*", count=1000)}
    assert all(key.startswith(f"{{{namespace}}}:") for key in keys), "one hash slot"
    assert {key.split(":")[2] for key in keys if key.split(":")[1] in ("main", "eval")} <= {"g3", "outbox"}
    assert (await generations.read()).judge == "new"
    await client.aclose()


@dataclass
class Step:
    kind: str
    number: int
    rank: float


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["old", "old", "new", "new", "third", "begin", "switch", "cancel", "answer", "remove", "drain"]
        ),
        st.integers(0, 11),
        st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.5]),
    ),
    max_size=40,
)


async def act(generations: Any, step: Step) -> object:
    """Does the step; returns what was answered."""
    id, text = f"id{step.number}", twin(step.number // 3, step.number)
    try:
        match step.kind:
            case "old" | "new" | "third":
                one = offer(id, step.rank, text, "abc"[step.number % 3], judge=step.kind)
                state = await generations.read()
                answers = []
                if state.next_judge == step.kind:
                    answers.append(await generations.next_main.offer([one], []))
                if state.judge in (None, step.kind):
                    answers.append(await generations.main.offer([one], []))
                return answers
            case "begin":
                return await generations.begin(["old", "new", "third"][step.number % 3], forced=step.rank > 3)
            case "switch":
                return await generations.switch()
            case "cancel":
                return await generations.cancel()
            case "answer":
                return await generations.main.attach(id, ANSWERS)
            case "remove":
                return await generations.main.remove([id])
            case "drain":
                state = await generations.read()
                for member in await generations.waiting("main", (await generations.todo("main"))[:4]):
                    judge = state.next_judge
                    text = member.prompt.messages[0].content
                    again = offer(member.prompt.id, step.rank, text, member.prompt.category, judge=judge)
                    await generations.next_main.offer([again], [])
                return None
    except (GenerationMoved, JudgeMismatch) as error:
        return type(error).__name__
    raise AssertionError(step)


@settings(max_examples=60, deadline=None)
@given(script=steps)
def test_redis_and_the_reference_agree_and_no_generation_mixes_judges(redis_url: str, script: list[Step]) -> None:
    async def run() -> None:
        clock = HandClock()
        client = connect(RedisSettings(url=redis_url))
        rules = BufferRules(5, 0.6, 0.8)
        real = RedisGenerations(client, f"test-{uuid.uuid4().hex}", rules, BufferRules(5), clock)
        reference = MemoryGenerations(rules, BufferRules(5), clock)
        try:
            for step in script:
                clock.now += 1
                assert await act(real, step) == await act(reference, step)
                state = await reference.read()
                assert await real.read() == state
                assert await real.todo("main") == await reference.todo("main")
                roles = [("active", state.judge)] + ([("next", state.next_judge)] if state.next else [])
                for role, judge in roles:
                    mine, theirs = (g.main if role == "active" else g.next_main for g in (reference, real))
                    members = await mine.top(100)
                    assert await theirs.top(100) == members
                    assert (await theirs.stats()).answered == (await mine.stats()).answered
                    assert (await theirs.stats()).admitted_total == (await mine.stats()).admitted_total
                    assert {m.prompt.judge for m in members} <= {judge}
            evictions = {(o.judge, o.id): o for o in await reference.main.outbox(1000)}
            assert {(o.judge, o.id): o for o in await real.main.outbox(1000)} == evictions
        finally:
            keys = [key async for key in client.scan_iter(match=f"*{real._namespace}*", count=1000)]
            if keys:
                await client.unlink(*keys)
            await client.aclose()

    asyncio.run(run())
