"""The reference: a buffer in plain Python, as simple as it can be. The contract tests compare Redis with it."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from streams.buffer.base import (
    HISTOGRAM_BINS,
    SWITCHED,
    BufferGap,
    BufferRules,
    BufferStats,
    Clock,
    JudgeMismatch,
    Offer,
    Position,
    difficulty_bin,
    judged,
    one_judge,
)
from streams.buffer.minhash import SLOTS, Sketch, alike, conversation_text, equal_slots, sketch
from streams.buffer.rank import order
from streams.errors import Transient
from streams.records import Candidate, CuratedOutcome, Member, Outcome


@dataclass
class Entry:
    """A member with what the rules need."""

    member: Member
    order: bytes
    sketch: Sketch | None
    answered: bool = False
    claimed_until: int = 0

    @property
    def id(self) -> str:
        return self.member.prompt.id

    @property
    def category(self) -> str:
        return self.member.prompt.category


class MemoryBuffer:
    """See `streams.buffer.base.Buffer`. `MemoryGenerations` pairs two of them while a rescoring is under way."""

    def __init__(self, rules: BufferRules, clock: Clock = time.time) -> None:
        self.rules = rules
        self._clock = clock
        self.coming: MemoryBuffer | None = None
        """Of the active buffer: the next one."""
        self.serving: MemoryBuffer | None = None
        """Of the next buffer: the active one."""
        self.todo: set[str] = set()
        """Of the active buffer: ids that the next judge has not rated."""
        self.started_ms = 0
        self.generation = 1
        self._reset()

    def _reset(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._applied: dict[int, int] = {}
        self._outbox: dict[tuple[str, str], CuratedOutcome] = {}
        self._judge: str | None = None
        self._admitted_total = 0
        self._evicted_total = 0

    async def offer(
        self, offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        judge = one_judge(offers)
        if judge is not None and self._judge is not None and judge != self._judge:
            raise JudgeMismatch(self._judge, judge)
        applied = dict(self._applied)
        for position in positions:
            before = applied.get(position.partition, -1)
            if position.first > before + 1:
                raise BufferGap(position.partition, before, position.first)
            applied[position.partition] = max(before, position.last)
        self._judge = self._judge or judge
        evictions: list[CuratedOutcome] = []
        before_ids = set(self._entries)
        weakest = self._ranked()[0] if len(self._entries) >= self.rules.capacity else None
        outcomes = [self._offer(offer, evictions, weakest) for offer in offers]
        self._applied = applied
        if self.serving is not None:
            self.serving.todo -= {offer.prompt.id for offer in offers}
        if self.coming is not None:
            self.todo |= {o.id for o in outcomes if o.outcome == "admitted"} - before_ids - self.coming._entries.keys()
        self.todo &= self._entries.keys()
        return outcomes + evictions

    def _offer(self, offer: Offer, evictions: list[CuratedOutcome], first_weakest: Entry | None) -> CuratedOutcome:
        threshold = self._threshold()
        if offer.refusal is not None:
            return judged(offer, offer.refusal, threshold)

        def outcome(
            kind: Outcome, detail: str | None = None, value: float | None = None, bound: float | None = None
        ) -> CuratedOutcome:
            return CuratedOutcome(
                id=offer.prompt.id,
                outcome=kind,
                rank_key=offer.rank_key,
                threshold=threshold,
                detail=detail,
                value=value,
                bound=bound,
                judge=offer.prompt.judge,
                ts=self._now(),
            )

        if offer.prompt.id in self._entries:
            return outcome("admitted")
        near = self.rules.near_duplicate
        new = Entry(
            Member(prompt=offer.prompt, rank_key=offer.rank_key, admitted_at=self._now()),
            order(offer.rank_key, offer.prompt.prompt_id, offer.prompt.id),
            None if near is None else sketch(conversation_text(offer.prompt.messages), near),
        )
        ranked = self._ranked()  # weakest first
        if first_weakest is not None and new.order < first_weakest.order:
            if threshold is None:  # alike ones of this batch have left a place
                threshold = first_weakest.member.rank_key
            return outcome("below_threshold")
        if threshold is not None and new.order < ranked[0].order:
            return outcome("below_threshold")

        twins = [e for e in ranked if near is not None and _alike(e, new, near)]
        if twins and twins[-1].order > new.order:
            hardest = twins[-1]
            if offer.offset > self._applied.get(offer.partition, -1) or offer.partition < 0:
                hardest.member.near_duplicates += 1
            return outcome("near_duplicate", hardest.id, _similarity(hardest, new), near)

        leaving: dict[str, str | None] = {e.id: new.id for e in twins}
        same = [e for e in ranked if e.category == new.category and e.id not in leaving]
        if len(same) >= self.rules.category_cap:
            if same[0].order > new.order:
                full = float(sum(e.category == new.category for e in ranked))
                return outcome("category_full", new.category, full, float(self.rules.category_cap))
            leaving[same[0].id] = new.category
        if len(ranked) - len(leaving) >= self.rules.capacity:
            weakest = next(e for e in ranked if e.id not in leaving)
            leaving[weakest.id] = None

        new.member.near_duplicates = sum(e.member.near_duplicates + 1 for e in twins)
        for id, detail in leaving.items():
            gone = self._entries.pop(id)
            eviction = CuratedOutcome(
                id=id,
                outcome="evicted",
                rank_key=gone.member.rank_key,
                threshold=threshold,
                detail=detail,
                by=new.id,
                judge=offer.prompt.judge,
                ts=self._now(),
            )
            evictions.append(eviction)
            self._outbox[offer.prompt.judge, id] = eviction
        known = self.serving._entries.get(new.id) if self.serving is not None else None
        if known is not None:  # what it has stays with it
            new.member.near_duplicates += known.member.near_duplicates
            new.member.admitted_at = known.member.admitted_at
            new.member.candidates = list(known.member.candidates)
            new.answered = known.answered
        self._entries[new.id] = new
        self._admitted_total += known is None or known.member.admitted_at >= self.started_ms
        self._evicted_total += len(leaving)
        return outcome("admitted")

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _ranked(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda e: e.order)

    def _threshold(self) -> float | None:
        return self._ranked()[0].member.rank_key if len(self._entries) >= self.rules.capacity else None

    def may_admit(self, rank_key: float) -> bool:
        threshold = self._threshold()
        return threshold is None or rank_key >= threshold

    async def positions(self) -> dict[int, int]:
        return dict(self._applied)

    async def outbox(self, limit: int) -> list[CuratedOutcome]:
        return list(self._outbox.values())[:limit]

    async def outbox_done(self, evictions: Iterable[CuratedOutcome]) -> None:
        for eviction in evictions:
            self._outbox.pop((eviction.judge or "", eviction.id), None)

    async def attach(self, id: str, candidates: Sequence[Candidate]) -> bool:
        found = False
        for buffer in (self, self.coming):
            entry = None if buffer is None else buffer._entries.get(id)
            if entry is not None:
                entry.member.candidates = list(candidates)
                entry.answered = found = True
        return found

    async def unanswered(self, limit: int, admitted_before_ms: int | None = None, claim_s: float = 600) -> list[Member]:
        now = self._now()
        free = [
            e
            for e in reversed(self._ranked())
            if not e.answered
            and e.claimed_until <= now
            and (admitted_before_ms is None or e.member.admitted_at < admitted_before_ms)
        ]
        for entry in free[:limit]:
            entry.claimed_until = now + int(claim_s * 1000)
        return [_copy(e) for e in free[:limit]]

    async def top(self, n: int, offset: int = 0, lowest: bool = False) -> list[Member]:
        ranked = self._ranked() if lowest else self._ranked()[::-1]
        return [_copy(e) for e in ranked[offset : offset + n]]

    async def get(self, id: str) -> Member | None:
        entry = self._entries.get(id)
        return None if entry is None else _copy(entry)

    async def place(self, id: str) -> int | None:
        hardest_first = [e.id for e in reversed(self._ranked())]
        return hardest_first.index(id) + 1 if id in hardest_first else None

    async def remove(self, ids: Iterable[str]) -> int:
        listed = list(ids)
        if self.coming is not None:
            await self.coming.remove(listed)
        removed = sum(self._entries.pop(id, None) is not None for id in listed)
        self.todo &= self._entries.keys()
        return removed

    async def stats(self) -> BufferStats:
        ranked = self._ranked()
        categories: dict[str, int] = {}
        histogram = [0] * HISTOGRAM_BINS
        for entry in ranked:
            categories[entry.category] = categories.get(entry.category, 0) + 1
            histogram[difficulty_bin(entry.member.prompt.difficulty)] += 1
        admitted = [e.member.admitted_at for e in ranked]
        return BufferStats(
            size=len(ranked),
            capacity=self.rules.capacity,
            threshold=self._threshold(),
            lowest_difficulty=ranked[0].member.prompt.difficulty if ranked else None,
            highest_difficulty=ranked[-1].member.prompt.difficulty if ranked else None,
            categories=categories,
            answered=sum(e.answered for e in ranked),
            admitted_total=self._admitted_total,
            evicted_total=self._evicted_total,
            histogram=histogram,
            oldest_admitted_at=min(admitted, default=None),
            newest_admitted_at=max(admitted, default=None),
            judge=self._judge,
        )

    async def iterate(self, chunk: int = 250) -> AsyncIterator[list[Member]]:
        ids = [e.id for e in reversed(self._ranked())]
        generation = self.generation
        for start in range(0, len(ids), chunk):
            if generation != self.generation:
                raise Transient(SWITCHED)
            members = [_copy(self._entries[id]) for id in ids[start : start + chunk] if id in self._entries]
            if members:
                yield members

    async def clear(self) -> None:
        self._reset()
        self.todo.clear()
        if self.serving is not None:
            self.serving.todo = set(self.serving._entries)

    def pair(self, coming: "MemoryBuffer", started_ms: int) -> None:
        """Begin a rescoring into `coming`, which is new."""
        coming.serving, coming.started_ms, coming._outbox = self, started_ms, self._outbox
        coming._applied = dict(self._applied)
        coming._admitted_total, coming._evicted_total = self._admitted_total, self._evicted_total
        self.coming, self.todo = coming, set(self._entries)

    def part(self) -> None:
        """Give the rescoring up."""
        self.coming = None
        self.todo.clear()

    def become(self, coming: "MemoryBuffer") -> None:
        """Take the place of what was: all that `coming` holds."""
        self._entries, self._applied, self._judge = coming._entries, coming._applied, coming._judge
        self._admitted_total, self._evicted_total = coming._admitted_total, coming._evicted_total
        self.generation += 1
        self.part()

    def listed(self) -> list[tuple[bytes, str]]:
        """Key in the order and id of each member on the list, hardest first."""
        return [(e.order[8:], e.id) for e in reversed(self._ranked()) if e.id in self.todo]


def _alike(entry: Entry, new: Entry, threshold: float) -> bool:
    return entry.sketch is not None and new.sketch is not None and alike(entry.sketch, new.sketch, threshold)


def _similarity(a: Entry, b: Entry) -> float:
    assert a.sketch is not None and b.sketch is not None
    return equal_slots(a.sketch, b.sketch) / SLOTS


def _copy(entry: Entry) -> Member:
    return msgspec.structs.replace(entry.member, candidates=list(entry.member.candidates))
