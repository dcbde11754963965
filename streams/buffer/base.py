"""What a buffer promises: its records, its errors, its protocol. `memory` and `redis` pass the same contract tests.

The rules, in order, for each offer of a batch (a batch is atomic):

1. A member offered again is `admitted` and nothing changes.
2. Below the threshold (the buffer is full and the weakest member is harder), now or when the batch began:
   `below_threshold`.
3. Alike to a harder member: `near_duplicate`. Softer members that are alike go, if rule 4 lets the newcomer in.
4. A full category competes with its own weakest: `category_full`, or that one goes.
5. `admitted`; when the buffer is over capacity, the weakest of all goes.

Harder means: higher in the total order of `streams.buffer.rank`, so that ties do not depend on arrival. Without
near-duplicates and caps the members are the top-k of everything offered, in whatever order it came.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from streams.buffer.minhash import Sketch
from streams.errors import HaypileError, InvalidRecord
from streams.records import Candidate, CuratedOutcome, Member, ScoredPrompt
from streams.settings import BufferSettings

HISTOGRAM_BINS = 16
"""Of difficulty, half a point wide: [1, 1.5) … [8.5, 9]."""

SWITCHED = "the buffer went over to another judge's ratings while it was read: read it again"

Clock = Callable[[], float]
"""Seconds since the epoch, like `time.time`."""


class BufferGap(HaypileError):
    """Records of a partition are missing between what is applied and this batch: replay them from the log first."""

    def __init__(self, partition: int, applied: int, first: int) -> None:
        super().__init__(f"buffer: partition {partition} is applied up to {applied}, the batch starts at {first}")
        self.partition = partition
        self.applied = applied
        """Last offset applied; -1: none is known."""
        self.first = first


class JudgeMismatch(HaypileError):
    """Scores of two judges are never compared: the batch comes from another judge than the members."""

    def __init__(self, have: str, got: str) -> None:
        super().__init__(f"buffer: its members were rated by judge {have}, the batch by judge {got}")
        self.have = have
        self.got = got


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A record of `prompts.scored` for the buffer. Raises `InvalidRecord` when `rank_key` is not finite."""

    prompt: ScoredPrompt
    rank_key: float
    partition: int = -1
    offset: int = -1
    """Where it comes from. At or under the applied offset it is a replay: a near-duplicate is not counted twice."""
    sketch: Sketch | None = None
    """Of what is compared, for the buffer's `near_duplicate`; None: the buffer makes it when it needs it."""
    refusal: CuratedOutcome | None = None
    """Set when an earlier rule refused it: it only advances the position, and comes back with the numbers filled in."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.rank_key):
            raise InvalidRecord("bad_rank_key", f"the rank key {self.rank_key} is not finite")


class Position(msgspec.Struct, frozen=True):
    """Offsets of one partition of `prompts.scored` that a batch covers, both ends included.

    Where the log has a hole (retention, compaction), the batch after it covers the hole too.
    """

    partition: int
    first: int
    last: int


class BufferRules(msgspec.Struct, frozen=True):
    """Policy of one buffer."""

    capacity: int
    category_share: float = 1.0
    near_duplicate: float | None = None
    """Jaccard similarity from which two prompts are alike; None: keep both."""

    @property
    def category_cap(self) -> int:
        """Members that one category may have (at least 1)."""
        return max(1, math.floor(self.capacity * self.category_share + 1e-9))  # 0.29 * 100 is 28.999…


BufferName = Literal["main", "eval"]


def rules(settings: BufferSettings, name: BufferName) -> BufferRules:
    """Policy of the main buffer or of the held-out one."""
    capacity = settings.capacity if name == "main" else settings.eval_capacity
    return BufferRules(capacity, settings.category_share, settings.near_duplicate)


class BufferStats(msgspec.Struct, kw_only=True):
    """State of a buffer at one moment."""

    size: int
    capacity: int
    threshold: float | None
    """Rank key to beat; None while there is room."""
    lowest_difficulty: float | None
    """Of the member ranked last; with a half-life an old, harder one may be ranked there."""
    highest_difficulty: float | None
    """Of the member ranked first."""
    categories: dict[str, int]
    answered: int
    """Members that `attach` was called for."""
    admitted_total: int
    evicted_total: int
    """Both since the buffer was created; `remove` and the move to another generation count in neither."""
    histogram: list[int]
    """Members by difficulty, `HISTOGRAM_BINS` bins."""
    oldest_admitted_at: int | None
    newest_admitted_at: int | None
    """Epoch milliseconds."""
    judge: str | None


class Buffer(Protocol):
    """A rolling top-k. The methods of the Redis buffer raise `Transient` or `Fatal` besides what is named here."""

    rules: BufferRules

    async def offer(
        self, offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        """Apply a batch atomically: an outcome for each offer in their order, then one `evicted` for each that went.

        Evictions are kept in the outbox too. `detail`: the member alike (`near_duplicate`), the category
        (`category_full`); of an eviction: the id that replaced an alike one, the category that was full, or None.
        `value` and `bound`: the similarity and its threshold (`near_duplicate`), the members of the category and its
        cap (`category_full`). `by`: who was admitted in place of an evicted one.
        `epoch`: of the generations, in which the caller decided what to offer; when it is over, `GenerationMoved`.
        Raises `BufferGap` or `JudgeMismatch`; then nothing was applied.
        """
        ...

    def may_admit(self, rank_key: float) -> bool:
        """False where the rank key was below the threshold when that was last seen: a sketch would be for nothing."""
        ...

    async def positions(self) -> dict[int, int]:
        """Last offset applied of each partition."""
        ...

    async def outbox(self, limit: int) -> list[CuratedOutcome]:
        """Evictions that were not yet taken off, of all generations (an id once for each judge, in no order)."""
        ...

    async def outbox_done(self, evictions: Iterable[CuratedOutcome]) -> None:
        """Take published evictions off."""
        ...

    async def attach(self, id: str, candidates: Sequence[Candidate]) -> bool:
        """Store the answers of a member (an empty list also counts as answered). False: it is no member any more."""
        ...

    async def unanswered(self, limit: int, admitted_before_ms: int | None = None, claim_s: float = 600) -> list[Member]:
        """The hardest members without answers, and claim them: nobody else gets them for `claim_s` seconds."""
        ...

    async def top(self, n: int, offset: int = 0, lowest: bool = False) -> list[Member]:
        """Members by rank, hardest first (or weakest first)."""
        ...

    async def get(self, id: str) -> Member | None:
        """A member, or None."""
        ...

    async def place(self, id: str) -> int | None:
        """Place of a member in the ranking, 1 for the hardest; None: it is no member."""
        ...

    async def remove(self, ids: Iterable[str]) -> int:
        """Remove members with all that belongs to them; how many there were. They are not evictions: no outcome."""
        ...

    async def stats(self) -> BufferStats:
        """Size, spread and counters."""
        ...

    def iterate(self, chunk: int = 250) -> AsyncIterator[list[Member]]:
        """All members, hardest first as of the start, in chunks; those that leave meanwhile are left out.

        Raises `Transient` when another generation became the active one meanwhile: what was read is of the old one.
        """
        ...

    async def clear(self) -> None:
        """Forget everything, positions and judge included (for a rebuild from the log)."""
        ...


def difficulty_bin(difficulty: float) -> int:
    """Index in the histogram of `BufferStats`."""
    return min(HISTOGRAM_BINS - 1, max(0, int((difficulty - 1) * 2)))


def one_judge(offers: Sequence[Offer]) -> str | None:
    """The judge of a batch, None when it is empty. Raises `JudgeMismatch` when there are two."""
    judge: str | None = None
    for offer in offers:
        if judge is not None and offer.prompt.judge != judge:
            raise JudgeMismatch(judge, offer.prompt.judge)
        judge = offer.prompt.judge
    return judge


def judged(offer: Offer, refusal: CuratedOutcome, threshold: float | None) -> CuratedOutcome:
    """The refusal of an earlier rule with the numbers of this moment."""
    return msgspec.structs.replace(refusal, rank_key=offer.rank_key, threshold=threshold, judge=offer.prompt.judge)
