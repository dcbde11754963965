"""What every buffer promises (see `streams.buffer.base`), over the reference and over a real Redis."""

import random
from collections.abc import Callable, Sequence

import pytest

from streams.buffer.base import Buffer, BufferGap, BufferRules, JudgeMismatch, Offer, Position, rules
from streams.errors import InvalidRecord
from streams.records import Candidate, CuratedOutcome
from streams.settings import BufferSettings
from tests.support.prompts import HandClock, offer, prompt, text, twin

Make = Callable[[BufferRules], Buffer]


async def outcomes(buffer: Buffer, *offers: Offer) -> list[tuple[str, str, str | None]]:
    """Id, outcome and detail of each outcome of one batch."""
    return [(o.id, o.outcome, o.detail) for o in await buffer.offer(offers, [])]


async def ids(buffer: Buffer) -> list[str]:
    """All members, hardest first."""
    return [m.prompt.id for m in await buffer.top(1000)]


async def test_keeps_the_hardest_and_says_what_became_of_each(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(2))
    first = await buffer.offer([offer("a", 3.0), offer("b", 5.0), offer("c", 2.0), offer("d", 4.0)], [])
    assert [(o.id, o.outcome, o.rank_key, o.threshold) for o in first] == [
        ("a", "admitted", 3.0, None),
        ("b", "admitted", 5.0, None),
        ("c", "below_threshold", 2.0, 3.0),
        ("d", "admitted", 4.0, 3.0),
        ("a", "evicted", 3.0, 3.0),
    ]
    assert await ids(buffer) == ["b", "d"]
    assert [m.prompt.id for m in await buffer.top(5, lowest=True)] == ["d", "b"]
    assert [m.prompt.id for m in await buffer.top(1, offset=1)] == ["d"]
    assert await buffer.top(0) == []


async def test_the_members_do_not_depend_on_the_order_of_offers(make_buffer: Make) -> None:
    offers = [offer(f"p{i}", rank=float(i % 7)) for i in range(60)]  # many ties
    random.Random(3).shuffle(offers)
    buffer = make_buffer(BufferRules(20))
    for start in range(0, 60, 7):
        await buffer.offer(offers[start : start + 7], [])
    kept = await ids(buffer)
    await buffer.clear()
    for one in sorted(offers, key=lambda o: o.prompt.id):
        await buffer.offer([one], [])
    assert await ids(buffer) == kept
    assert (
        sorted((m.rank_key for m in await buffer.top(20)), reverse=True)
        == sorted((o.rank_key for o in offers), reverse=True)[:20]
    )


async def test_offering_a_member_again_changes_nothing(make_buffer: Make, clock: HandClock) -> None:
    buffer = make_buffer(BufferRules(2, near_duplicate=0.8))
    await buffer.offer([offer("a", 3.0), offer("b", 4.0)], [])
    before = await buffer.top(5), await buffer.stats()
    clock.now += 5
    assert await outcomes(buffer, offer("a", 3.0), offer("b", 4.0), offer("a", 9.0)) == [
        ("a", "admitted", None),
        ("b", "admitted", None),
        ("a", "admitted", None),
    ]
    assert (await buffer.top(5), await buffer.stats()) == before


async def test_of_two_alike_the_harder_stays(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(10, near_duplicate=0.8))
    hard, soft, harder = (offer(n, r, twin(1, i)) for i, (n, r) in enumerate([("hard", 5), ("soft", 4), ("harder", 6)]))
    assert await outcomes(buffer, hard, offer("else", 1.0)) == [("hard", "admitted", None), ("else", "admitted", None)]
    assert await outcomes(buffer, soft) == [("soft", "near_duplicate", "hard")]
    assert await outcomes(buffer, harder) == [("harder", "admitted", None), ("hard", "evicted", "harder")]
    member = await buffer.get("harder")
    assert member is not None and member.near_duplicates == 2  # its own, and the one that `hard` had refused
    assert await ids(buffer) == ["harder", "else"]


async def test_a_replayed_near_duplicate_is_refused_again_but_counted_once(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(10, near_duplicate=0.8))
    batch = [offer("hard", 5, twin(1, 1), at=(0, 0)), offer("soft", 4, twin(1, 2), at=(0, 1))]
    for _ in range(3):
        result = await buffer.offer(batch, [Position(0, 0, 1)])
        assert [o.outcome for o in result] == ["admitted", "near_duplicate"]
    member = await buffer.get("hard")
    assert member is not None and member.near_duplicates == 1


async def test_without_a_near_duplicate_threshold_both_stay(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(10))
    await buffer.offer([offer("a", 5, twin(1, 1)), offer("b", 4, twin(1, 1))], [])
    assert await ids(buffer) == ["a", "b"]


async def test_a_newcomer_alike_to_several_replaces_all_of_them(make_buffer: Make) -> None:
    # Of shingles, left and right share 0.77, the middle one 0.87 with either.
    middle = text(6, 60)
    left, right = f"{text(98, 9)} {middle}", f"{middle} {text(99, 9)}"
    buffer = make_buffer(BufferRules(10, near_duplicate=0.83))
    assert await outcomes(buffer, offer("l", 2, left), offer("r", 3, right)) == [
        ("l", "admitted", None),
        ("r", "admitted", None),
    ]
    result = await outcomes(buffer, offer("m", 4, middle))
    assert result[0] == ("m", "admitted", None)
    assert set(result[1:]) == {("l", "evicted", "m"), ("r", "evicted", "m")}
    member = await buffer.get("m")
    assert member is not None and member.near_duplicates == 2


@pytest.mark.parametrize(("left_rank", "right_rank", "hardest"), [(2, 6, "r"), (6, 2, "l"), (5, 6, "r"), (6, 5, "l")])
async def test_between_two_alike_the_harder_one_refuses(
    make_buffer: Make, left_rank: float, right_rank: float, hardest: str
) -> None:
    middle = text(6, 60)
    left, right = f"{text(98, 9)} {middle}", f"{middle} {text(99, 9)}"
    buffer = make_buffer(BufferRules(10, near_duplicate=0.83))
    await buffer.offer([offer("l", left_rank, left), offer("r", right_rank, right)], [])
    assert await outcomes(buffer, offer("m", 4, middle)) == [("m", "near_duplicate", hardest)]
    assert sorted(await ids(buffer)) == ["l", "r"]


async def test_a_count_of_near_duplicates_leaves_with_its_member(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(2, near_duplicate=0.8))
    twins = [offer("hard", 5, twin(1, 1)), offer("soft", 4, twin(1, 2))]
    bigger = [offer("big", 9), offer("bigger", 10)]
    for batches in ([[*twins, *bigger]], [twins, bigger]):
        kinds = [o.outcome for batch in batches for o in await buffer.offer(batch, [])]
        assert kinds == ["admitted", "near_duplicate", "admitted", "admitted", "evicted"]
        await buffer.remove(["big", "bigger"])
        await buffer.offer(twins[:1], [])
        member = await buffer.get("hard")
        assert member is not None and member.near_duplicates == 0
        await buffer.remove(["hard"])


async def test_a_full_category_competes_with_its_own_weakest(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(4, category_share=0.5))
    await buffer.offer([offer("a", 5), offer("b", 4), offer("x", 1, category="code")], [])
    assert await outcomes(buffer, offer("c", 3)) == [("c", "category_full", "math")]
    assert await outcomes(buffer, offer("d", 4.5)) == [("d", "admitted", None), ("b", "evicted", "math")]
    assert (await buffer.stats()).categories == {"math": 2, "code": 1}


async def test_a_refused_newcomer_does_not_push_out_its_twin(make_buffer: Make) -> None:
    # Harder than its twin in another category, but its own category is full of harder ones.
    buffer = make_buffer(BufferRules(4, category_share=0.25, near_duplicate=0.8))
    await buffer.offer([offer("a", 5), offer("x", 1, twin(1, 1), category="code")], [])
    assert await outcomes(buffer, offer("y", 3, twin(1, 2))) == [("y", "category_full", "math")]
    assert await ids(buffer) == ["a", "x"]


async def test_a_twin_that_leaves_makes_room_in_the_category(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(2, category_share=0.5, near_duplicate=0.8))
    await buffer.offer([offer("a", 5, twin(1, 1)), offer("x", 1, category="code")], [])
    assert await outcomes(buffer, offer("b", 6, twin(1, 2))) == [("b", "admitted", None), ("a", "evicted", "b")]
    assert await ids(buffer) == ["b", "x"]


@pytest.mark.parametrize(("capacity", "share", "cap"), [(100, 0.29, 29), (3, 0.1, 1), (10, 1.0, 10)])
def test_category_cap(capacity: int, share: float, cap: int) -> None:
    assert BufferRules(capacity, share).category_cap == cap


def test_rules_from_settings() -> None:
    settings = BufferSettings(capacity=7, eval_capacity=3, category_share=0.5, near_duplicate=None)
    assert rules(settings, "main") == BufferRules(7, 0.5, None)
    assert rules(settings, "eval") == BufferRules(3, 0.5, None)


async def test_a_refusal_of_an_earlier_rule_only_moves_the_position(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(1))
    refusal = CuratedOutcome(id="bad", outcome="low_quality", detail="1.5", ts=7)
    await buffer.offer([offer("a", 3.0)], [])
    result = await buffer.offer([offer("bad", 8.0, refusal=refusal, at=(0, 0))], [Position(0, 0, 0)])
    assert result == [
        CuratedOutcome(id="bad", outcome="low_quality", rank_key=8.0, threshold=3.0, detail="1.5", judge="j1", ts=7)
    ]
    assert await ids(buffer) == ["a"]
    assert await buffer.positions() == {0: 0}


async def test_a_rank_key_that_is_no_number_is_the_records_fault() -> None:
    with pytest.raises(InvalidRecord, match="bad_rank_key"):
        offer("a", float("nan"))


# Positions


async def test_positions_advance_with_the_batch_and_never_go_back(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(10))
    await buffer.offer([offer("a", at=(0, 0)), offer("b", at=(3, 0))], [Position(0, 0, 4), Position(3, 0, 0)])
    assert await buffer.positions() == {0: 4, 3: 0}
    await buffer.offer([offer("c", at=(0, 2))], [Position(0, 2, 2)])
    assert await buffer.positions() == {0: 4, 3: 0}
    await buffer.offer([], [Position(0, 3, 9), Position(0, 10, 11)])
    assert await buffer.positions() == {0: 11, 3: 0}


@pytest.mark.parametrize("position", [Position(0, 7, 7), Position(1, 1, 1)])
async def test_a_gap_refuses_the_whole_batch(make_buffer: Make, position: Position) -> None:
    buffer = make_buffer(BufferRules(1))
    await buffer.offer([offer("a", 1.0)], [Position(0, 0, 4)])
    before = await buffer.top(9), await buffer.stats(), await buffer.positions(), await buffer.outbox(9)
    with pytest.raises(BufferGap) as caught:
        await buffer.offer([offer("b", 2.0)], [Position(0, 5, 5), position])
    assert (caught.value.partition, caught.value.first) == (position.partition, position.first)
    assert caught.value.applied == (5 if position.partition == 0 else -1)
    assert (await buffer.top(9), await buffer.stats(), await buffer.positions(), await buffer.outbox(9)) == before


# Judge


async def test_the_first_record_fixes_the_judge(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(1))
    await buffer.offer([], [Position(0, 0, 0)])
    assert (await buffer.stats()).judge is None
    await buffer.offer([offer("a", 1.0, judge="j1")], [])
    before = await buffer.top(9), await buffer.stats(), await buffer.positions()
    with pytest.raises(JudgeMismatch) as caught:
        await buffer.offer([offer("b", 2.0, judge="j2", at=(0, 1))], [Position(0, 1, 1)])
    assert (caught.value.have, caught.value.got) == ("j1", "j2")
    with pytest.raises(JudgeMismatch):
        await buffer.offer([offer("c", 2.0, judge="j1"), offer("d", 2.0, judge="j2")], [])
    assert (await buffer.top(9), await buffer.stats(), await buffer.positions()) == before
    await buffer.clear()
    assert [o.outcome for o in await buffer.offer([offer("b", judge="j2")], [])] == ["admitted"]


# Outbox


async def test_evictions_wait_in_the_outbox_until_they_are_taken_off(make_buffer: Make, clock: HandClock) -> None:
    buffer = make_buffer(BufferRules(1))
    returned = await buffer.offer([offer("a", 1.0), offer("b", 2.0), offer("c", 3.25)], [])
    evicted = [o for o in returned if o.outcome == "evicted"]
    assert sorted(await buffer.outbox(10), key=lambda o: o.id) == evicted
    assert [(o.id, o.rank_key, o.threshold, o.ts) for o in evicted] == [
        ("a", 1.0, 1.0, int(clock.now * 1000)),
        ("b", 2.0, 2.0, int(clock.now * 1000)),
    ]
    assert len(await buffer.outbox(1)) == 1
    unknown = CuratedOutcome(id="unknown", outcome="evicted", judge="j1", ts=7)
    await buffer.outbox_done([unknown, *(o for o in evicted if o.id == "a")])
    assert [o.id for o in await buffer.outbox(10)] == ["b"]
    await buffer.outbox_done([])
    await buffer.outbox_done(await buffer.outbox(10))
    assert await buffer.outbox(10) == []


# Answers

ANSWERS = [
    Candidate(text="so it is", reward=7.5, origin="teacher", model="t"),
    Candidate(text="não é", reward=2.0, origin="production"),
]


async def test_answers_stay_with_the_member_and_leave_with_it(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(1))
    await buffer.offer([offer("a", 1.0)], [])
    assert await buffer.attach("a", ANSWERS)
    member = await buffer.get("a")
    assert member is not None and member.candidates == ANSWERS
    assert (await buffer.stats()).answered == 1
    await buffer.offer([offer("b", 2.0)], [])
    assert not await buffer.attach("a", ANSWERS)
    assert await buffer.get("a") is None
    assert (await buffer.stats()).answered == 0
    await buffer.remove(["b"])
    await buffer.offer([offer("a", 1.0)], [])
    member = await buffer.get("a")
    assert member is not None and member.candidates == []


async def test_unanswered_gives_each_member_to_one_and_again_when_the_claim_runs_out(
    make_buffer: Make, clock: HandClock
) -> None:
    buffer = make_buffer(BufferRules(10))
    await buffer.offer([offer(f"p{i}", float(i)) for i in range(1, 6)], [])

    async def claim(limit: int) -> list[str]:
        return [m.prompt.id for m in await buffer.unanswered(limit, claim_s=30)]

    assert await claim(2) == ["p5", "p4"]
    assert await claim(2) == ["p3", "p2"]
    await buffer.attach("p5", [])  # nothing to be had also is an answer
    clock.now += 29
    assert await claim(9) == ["p1"]
    clock.now += 1
    assert await claim(9) == ["p4", "p3", "p2"]
    clock.now += 30
    assert await claim(9) == ["p4", "p3", "p2", "p1"]


async def test_unanswered_leaves_the_newest_alone(make_buffer: Make, clock: HandClock) -> None:
    buffer = make_buffer(BufferRules(10))
    await buffer.offer([offer("old", 1.0)], [])
    clock.now += 60
    await buffer.offer([offer("new", 2.0)], [])
    now = int(clock.now * 1000)
    assert [m.prompt.id for m in await buffer.unanswered(9, now - 60_000, claim_s=0)] == []
    assert [m.prompt.id for m in await buffer.unanswered(9, now - 59_999, claim_s=0)] == ["old"]
    assert [m.prompt.id for m in await buffer.unanswered(9, claim_s=0)] == ["new", "old"]
    # Having been asked for once, the new one is still too new for who asks with a bound.
    assert [m.prompt.id for m in await buffer.unanswered(9, now, claim_s=0)] == ["old"]


# Reading, removing


async def test_a_member_comes_back_as_it_went_in(make_buffer: Make, clock: HandClock) -> None:
    buffer = make_buffer(BufferRules(10, near_duplicate=0.8))
    one = offer("ключ:0:1 \x00{}", 5.123456789012345, "Ünïcödé\nzwei\t中文", category="l'été")
    await buffer.offer([one], [])
    member = await buffer.get(one.prompt.id)
    assert member is not None
    assert member.prompt == one.prompt
    assert (member.rank_key, member.admitted_at) == (one.rank_key, int(clock.now * 1000))
    assert await buffer.get("other") is None
    assert (await buffer.stats()).categories == {"l'été": 1}


async def test_remove_takes_everything_along(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(4, category_share=0.25, near_duplicate=0.8))
    await buffer.offer([offer("a", 5, twin(1, 1))], [])
    assert await buffer.remove(["a", "unknown", "a"]) == 1
    assert await buffer.remove([]) == 0
    assert await buffer.outbox(9) == []
    # Neither its text nor its place in the category stands in the way of an easier twin.
    assert await outcomes(buffer, offer("b", 4, twin(1, 2))) == [("b", "admitted", None)]
    stats = await buffer.stats()
    assert (stats.size, stats.admitted_total, stats.evicted_total) == (1, 2, 0)


async def test_stats(make_buffer: Make, clock: HandClock) -> None:
    buffer = make_buffer(BufferRules(2))
    empty = await buffer.stats()
    assert (empty.size, empty.threshold, empty.lowest_difficulty, empty.oldest_admitted_at) == (0, None, None, None)
    start = int(clock.now * 1000)
    await buffer.offer([offer("a", 1.0), offer("b", 9.0)], [])
    clock.now += 10
    await buffer.offer([offer("c", 2.75, category="code")], [])
    stats = await buffer.stats()
    assert (stats.size, stats.capacity, stats.threshold, stats.judge) == (2, 2, 2.75, "j1")
    assert (stats.lowest_difficulty, stats.highest_difficulty) == (2.75, 9.0)
    assert (stats.admitted_total, stats.evicted_total) == (3, 1)
    assert (stats.oldest_admitted_at, stats.newest_admitted_at) == (start, start + 10_000)
    assert {i: n for i, n in enumerate(stats.histogram) if n} == {3: 1, 15: 1}
    assert stats.categories == {"math": 1, "code": 1}


async def test_iterate_gives_each_member_once(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(50))
    await buffer.offer([offer(f"p{i}", float(i)) for i in range(50)], [])
    chunks = [[m.prompt.id for m in chunk] async for chunk in buffer.iterate(chunk=20)]
    assert [len(chunk) for chunk in chunks] == [20, 20, 10]
    assert [id for chunk in chunks for id in chunk] == [f"p{i}" for i in reversed(range(50))]


async def test_iterate_leaves_out_who_leaves_meanwhile(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(50))
    await buffer.offer([offer(f"p{i}", float(i)) for i in range(6)], [])
    seen: list[str] = []
    async for chunk in buffer.iterate(chunk=2):
        seen += [m.prompt.id for m in chunk]
        await buffer.remove(["p2", "p1", "p0"])
    assert seen == ["p5", "p4", "p3"]


async def test_clear_forgets_everything(make_buffer: Make) -> None:
    buffer = make_buffer(BufferRules(1, near_duplicate=0.8))
    await buffer.offer([offer("a", 1, twin(1, 1)), offer("b", 2)], [Position(0, 0, 1)])
    await buffer.clear()
    assert await ids(buffer) == []
    assert await buffer.positions() == {}
    assert await buffer.outbox(9) == []
    stats = await buffer.stats()
    assert (stats.judge, stats.admitted_total, sum(stats.histogram)) == (None, 0, 0)
    assert await outcomes(buffer, offer("c", 1, twin(1, 2), judge="j9")) == [("c", "admitted", None)]


def test_samples_are_what_the_tests_take_them_for() -> None:
    """Two versions of a seed are alike, two seeds are not: otherwise the tests above test something else."""
    from streams.buffer.minhash import alike, sketch

    a, b, c = (sketch(t, 0.8) for t in (twin(1, 1), twin(1, 2), twin(2, 1)))
    assert alike(a, b, 0.8) and not alike(a, c, 0.8)
    texts: Sequence[str] = [prompt(f"p{i}").messages[0].content for i in range(60)]
    sketches = [sketch(t, 0.8) for t in texts]
    assert not any(alike(x, y, 0.8) for i, x in enumerate(sketches) for y in sketches[:i])
