"""`prompts.scored` → the buffer: admitted, or refused with a reason. Acked only when Redis has it.

Records of all partitions are gathered into batches, each one atomic call, in the order of the log. The buffer keeps the
offset it has applied: when it is behind (Redis came back older than what was committed), the gap is read again from the
topic first. The log is the truth, Redis a view of it.

A record goes to the generation of the judge that rated it (`streams.buffer.generations`). A judge that nobody has seen
before opens the next generation; a record of a judge that was replaced goes back to `prompts.accepted`, to be rated by
the one in force.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from agents.rules.rank import rank_key
from agents.scored_log import BATCH, Log, Scored, read_scored
from streams.app import Inbound
from streams.batcher import Batcher
from streams.buffer.base import Buffer, BufferGap, JudgeMismatch, Offer, Position
from streams.buffer.generations import GenerationMoved, Generations, GenerationState, Role
from streams.buffer.minhash import conversation_text, sketch
from streams.errors import InvalidRecord, Transient
from streams.forgotten import ForgottenList
from streams.metrics import Metrics
from streams.producer import Producer
from streams.records import CuratedOutcome, ScoredPrompt, accepted
from streams.retry import OutageLog, patiently
from streams.settings import BufferSettings
from streams.topics import Topics

log = logging.getLogger(__name__)


MOST_LOOKS = 20
"""At the generations, for one batch: they change once or twice in a rescoring."""


class Curator:
    """Applies records of the log to the buffers. Shared by the hop and by `haypile buffer rebuild`.

    With `only`, the active generation is this judge's, whatever comes first, and no judge opens a generation. Without
    `generations` there is one generation, of the judge of the first record.

    What is in `forgotten` is not offered. `refresh` brings that list up to date: it is called in each new epoch of the
    generations before anything is offered in it, so that after a `fence` nobody offers by an older list.
    """

    def __init__(
        self,
        settings: BufferSettings,
        main: Buffer,
        held_out: Buffer,
        now_ms: Callable[[], int],
        *,
        generations: Generations | None = None,
        only: str | None = None,
        forgotten: ForgottenList | None = None,
        refresh: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._settings = settings
        self._main = main
        self._held_out = held_out
        self._now_ms = now_ms
        self._generations = generations
        self._only = only
        self._forgotten = forgotten if forgotten is not None else ForgottenList()
        self._refresh = refresh
        self._fresh_in: int | None = None
        """Epoch of the generations after whose begin the list was refreshed."""

    def prepared(self, record: Scored) -> Scored:
        """The record with what it will be compared by, if it seems to have a chance."""
        prompt, near = record.prompt, self._main.rules.near_duplicate
        if prompt is None or near is None:
            return record
        if not self._main.may_admit(rank_key(prompt.difficulty, prompt.ts, self._settings.half_life_s)):
            return record
        return replace(record, sketch=sketch(conversation_text(prompt.messages), near))

    async def apply(self, records: Sequence[Scored], positions: Sequence[Position]) -> list[CuratedOutcome | None]:
        """Offers records in their order and moves the positions on, in one atomic call of each generation.

        Returns the outcome of each record: None for one that cannot be read, `other_judge` for one whose judge is not
        in force, `forgotten`. What had to go is in the outboxes. Raises `BufferGap` (that generation has taken
        nothing), `Transient`, and without generations `JudgeMismatch`.
        """
        if self._generations is None:
            return await self._offer_all(records, positions, {})
        for _ in range(MOST_LOOKS):
            try:
                state = await self._generations.known()
                if self._refresh is not None and self._fresh_in != state.epoch:
                    await self._refresh()
                    self._fresh_in = state.epoch
                routes = await self._routes(records, state)
                return await self._offer_all(records, positions, routes, state)
            except (GenerationMoved, JudgeMismatch):
                # What was offered already is offered again, which changes nothing.
                await self._generations.read()
        raise Transient(f"the buffer's generations changed {MOST_LOOKS} times while a batch was offered")

    async def _routes(self, records: Sequence[Scored], state: GenerationState) -> dict[str, list[Role]]:
        """The generations that each judge's records go to. A judge that is new opens the next one."""
        if self._generations is None:
            raise RuntimeError("no generations")
        prompts = [record.prompt for record in records if record.prompt is not None]
        judges = list(dict.fromkeys(prompt.judge for prompt in prompts if self._forgotten.prompt(prompt) is None))
        active = self._only or state.judge or next((judge for judge in judges if judge not in state.retired), None)
        routes: dict[str, list[Role]] = {}
        for judge in judges:
            routes[judge] = ["next"] if judge == state.next_judge else []
            if judge == active:
                routes[judge].append("active")
            elif not routes[judge] and judge not in state.retired and self._only is None:
                if state.judge is None:  # the first record of all, and another judge in the same batch
                    first = [r for r in records if r.prompt and r.prompt.judge == active]
                    await self._offer_all(first, [], {}, state)
                else:
                    begun = await self._generations.begin(judge)
                    log.warning("judge %s has rated records, the buffer is of %s: %s", judge, state.judge, begun)
                raise GenerationMoved("look again")
        return routes

    async def _offer_all(
        self,
        records: Sequence[Scored],
        positions: Sequence[Position],
        routes: dict[str, list[Role]],
        state: GenerationState | None = None,
    ) -> list[CuratedOutcome | None]:
        now = self._now_ms()
        outcomes: list[CuratedOutcome | None] = [None] * len(records)
        for number, record in enumerate(records):
            if record.prompt is not None and self._forgotten.prompt(record.prompt) is not None:
                outcomes[number] = CuratedOutcome(id=record.prompt.id, outcome="forgotten", ts=now)
        known = [outcome is not None for outcome in outcomes]
        epoch = state.epoch if state is not None else None
        pairs: list[tuple[Role, Buffer, Buffer]] = [("active", self._main, self._held_out)]
        if self._generations is not None and state is not None and state.next is not None:
            # First, so that the next generation is never behind the active one when it takes its place.
            pairs.insert(0, ("next", self._generations.next_main, self._generations.next_held_out))
        for role, main, held_out in pairs:
            mine: list[tuple[int, Scored, ScoredPrompt]] = []
            for number, record in enumerate(records):
                if record.prompt is None or known[number]:
                    continue
                if role in routes.get(record.prompt.judge, () if routes else ("active",)):
                    mine.append((number, record, record.prompt))
            # Held-out prompts go first: the main buffer keeps the position, so that after a kill in between they are
            # offered again, which changes nothing.
            held = [self._offer(record, prompt, None) for _, record, prompt in mine if prompt.split == "eval"]
            if held:
                await held_out.offer(held, [], epoch)
            offers = [self._offer(record, prompt, self._refusal(prompt, now)) for _, record, prompt in mine]
            verdicts = await main.offer(offers, positions, epoch)
            for (number, _, _), verdict in zip(mine, verdicts, strict=False):
                outcomes[number] = verdict
        for number, record in enumerate(records):
            if record.prompt is not None and outcomes[number] is None:
                judge = record.prompt.judge
                outcomes[number] = CuratedOutcome(id=record.prompt.id, outcome="other_judge", judge=judge, ts=now)
        return outcomes

    def _refusal(self, prompt: ScoredPrompt, now: int) -> CuratedOutcome | None:
        """What refuses a prompt before it competes."""
        if prompt.split == "eval":
            return CuratedOutcome(id=prompt.id, outcome="held_out", ts=now)
        if prompt.quality < self._settings.min_quality:
            detail = f"quality {prompt.quality:.2f} < {self._settings.min_quality:g}"
            return CuratedOutcome(
                id=prompt.id,
                outcome="low_quality",
                detail=detail,
                value=prompt.quality,
                bound=self._settings.min_quality,
                ts=now,
            )
        return None

    def _offer(self, record: Scored, prompt: ScoredPrompt, refusal: CuratedOutcome | None) -> Offer:
        key = rank_key(prompt.difficulty, prompt.ts, self._settings.half_life_s)
        return Offer(
            prompt=prompt,
            rank_key=key,
            partition=record.partition,
            offset=record.offset,
            sketch=record.sketch,
            refusal=refusal,
        )


async def replay(
    log_of_scored: Log,
    curator: Curator,
    partition: int,
    first: int,
    end: int,
    at: Callable[[int], None] = lambda offset: None,
    tell: Callable[[Sequence[CuratedOutcome]], Awaitable[object]] | None = None,
    others: Counter[str] | None = None,
) -> int:
    """Applies the log's offsets `first` to `end` - 1 of a partition; returns how many records there were.

    `at` is told each offset that it has come to, `tell` the outcomes. A record whose judge is not in force is passed
    over (it went back to be rated again when it first came); `others` counts them by judge.

    The position ends at `end` - 1 even where the log has holes (retention, compaction).
    """
    count = 0
    async for records in log_of_scored.between(partition, first, end):
        outcomes = await curator.apply(records, [Position(partition, first, records[-1].offset)])
        if tell is not None:
            await tell([o for o in outcomes if o is not None and o.outcome not in ("other_judge", "forgotten")])
        if others is not None:
            others.update(o.judge or "" for o in outcomes if o is not None and o.outcome == "other_judge")
        count += len(records)
        first = records[-1].offset + 1
        at(first)
    if first < end:
        await curator.apply([], [Position(partition, first, end - 1)])
    return count


class Curate:
    """The handler of the hop."""

    def __init__(
        self,
        curator: Curator,
        buffers: Sequence[Buffer],
        topics: Topics,
        *,
        log_of_scored: Log,
        producer: Producer,
        metrics: Metrics,
    ) -> None:
        self._curator = curator
        self._buffers = buffers
        self._topics = topics
        self._log = log_of_scored
        self._producer = producer
        self._metrics = metrics
        self._outage = OutageLog("curate's buffer", time.monotonic, metrics.health)
        self._batcher: Batcher[Scored, CuratedOutcome | None] = Batcher(self._flush, BATCH)

    async def __call__(self, record: Inbound) -> str:
        """Offers the record; its outcome is in `prompts.curated` when this returns, or it is on its way to be rated
        again."""
        scored = read_scored(record.partition, record.offset, record.value)
        outcome = await self._batcher.add(self._curator.prepared(scored))
        if outcome is None:
            raise InvalidRecord("not_scored_record", scored.error)
        if outcome.outcome == "forgotten":
            return outcome.outcome
        if outcome.outcome == "other_judge" and scored.prompt is not None:
            again = accepted(scored.prompt)
            await self._producer.send(self._topics.accepted, again, key=again.id, headers=list(record.headers))
            return outcome.outcome
        await self._producer.send(self._topics.curated, outcome, key=outcome.id)
        return outcome.outcome

    async def repair(self) -> int:
        """Replays what is committed but not in Redis, and publishes evictions that were left over.

        A gap also shows when the next record comes; on a quiet topic that may be never. Returns how many records were
        replayed. Raises `Transient`.
        """
        count = 0
        committed = await self._log.committed()
        applied = await self._buffers[0].positions()
        for partition, end in committed.items():
            first = applied.get(partition, -1) + 1
            if first < end:
                count += await self._replay(partition, first, end)
        await self.publish_evictions()
        return count

    async def _replay(self, partition: int, first: int, end: int) -> int:
        log.warning(
            "Redis is behind the log: partition %d, offsets %d to %d",
            *(partition, first, end - 1),
            extra={"event": "replay", "partition": partition, "first": first, "last": end - 1},
        )
        what = f"replay of partition {partition}"

        def at(offset: int) -> None:
            self._metrics.health.bad(what, f"Redis came back without offsets; now at {offset} of {end - 1}")

        at(first)
        try:
            count = await replay(self._log, self._curator, partition, first, end, at, self._tell)
        finally:
            self._metrics.health.well(what)
        self._metrics.buffer_replayed.inc(count)
        return count

    async def _tell(self, outcomes: Sequence[CuratedOutcome]) -> None:
        # Again, because they may differ: with near-duplicates and caps it matters what was in the buffer first.
        await asyncio.gather(*(self._producer.send(self._topics.curated, o, key=o.id) for o in outcomes))

    async def publish_evictions(self) -> int:
        """Publishes what had to go and is not published yet (also by a worker that died); returns how many."""
        count = 0
        for buffer in self._buffers:
            while evicted := await buffer.outbox(BATCH):
                await asyncio.gather(*(self._producer.send(self._topics.curated, e, key=e.id) for e in evicted))
                await buffer.outbox_done(evicted)
                self._metrics.records.labels("curate", "evicted").inc(len(evicted))
                count += len(evicted)
        return count

    async def _flush(self, records: Sequence[Scored]) -> Sequence[CuratedOutcome | None]:
        # The wait for Redis is here, not in each record's task: a batch that is retried keeps its place in the order.
        outcomes = await patiently(lambda: self._apply(records), self._waiting)
        self._outage.worked()
        return outcomes

    async def _apply(self, records: Sequence[Scored]) -> list[CuratedOutcome | None]:
        while True:
            try:
                outcomes = await self._curator.apply(records, positions_of(records))
                await self.publish_evictions()
                return outcomes
            except BufferGap as gap:
                await self._replay(gap.partition, gap.applied + 1, gap.first)

    def _waiting(self, error: Transient) -> None:
        self._metrics.retries.labels("curate").inc()
        self._outage.failed(error)


def positions_of(records: Sequence[Scored]) -> list[Position]:
    """The range of offsets of each partition in a batch."""
    ranges: dict[int, tuple[int, int]] = {}
    for record in records:
        first, last = ranges.get(record.partition, (record.offset, record.offset))
        ranges[record.partition] = (min(first, record.offset), max(last, record.offset))
    return [Position(partition, first, last) for partition, (first, last) in ranges.items()]
