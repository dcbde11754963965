"""The buffer in Redis or Valkey: every change is one Lua script, so that a batch is applied whole or not at all.

`lua/keys.lua` holds the key schema. Scripts may run twice (redis-py repeats a call whose answer got lost): offering
again what was applied changes nothing.
"""

import struct
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any

import msgspec
import redis.asyncio

from streams.buffer.base import (
    HISTOGRAM_BINS,
    SWITCHED,
    BufferGap,
    BufferName,
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
from streams.buffer.generations import GenerationMoved, GenerationState, Role
from streams.buffer.minhash import SLOTS, Sketch, conversation_text, needed, sketch
from streams.buffer.rank import member_key, sortable, tie
from streams.errors import Transient
from streams.records import Candidate, CuratedOutcome, Member, ScoredPrompt, encode
from streams.redis_client import translate

KEY_NAMES = (
    "rank",
    "category",
    "age",
    "fresh",
    "open",
    "claims",
    "trail",
    "body",
    "answers",
    "alike",
    "bands",
    "meta",
    "categories",
    "outbox",
    "positions",
)
"""In the order of `lua/keys.lua`."""
NAMES: tuple[BufferName, BufferName] = ("main", "eval")
NOT_COMPARED = Sketch(b"", b"")
SCAN_COUNT = 1000
"""Members that one step of a scan looks at: under a millisecond of Redis."""

_prompts = msgspec.json.Decoder(ScoredPrompt)
_candidates = msgspec.json.Decoder(list[Candidate])
_flat: msgspec.msgpack.Decoder[list[str | bool | None]] = msgspec.msgpack.Decoder(list[str | bool | None])


class Eviction(msgspec.Struct):
    """An entry of the outbox."""

    id: str
    judge: str
    rank_key: float
    ts: int
    threshold: float | None = None
    detail: str | None = None
    by: str | None = None


_evictions = msgspec.msgpack.Decoder(Eviction)


@cache
def source(*parts: str) -> str:
    """A script over one buffer: the files of `lua/` one after the other, the key schema first."""
    return "\n".join(script(part) for part in ("keys", *parts))


@cache
def script(name: str) -> str:
    """A file of `lua/`."""
    return (files("streams.buffer") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def shared_keys(namespace: str) -> list[str]:
    """State, retired judges, generations that are over: one of each for all buffers."""
    return [f"{{{namespace}}}:generations{part}" for part in ("", ":retired", ":old")]


def todo_key(namespace: str, name: BufferName) -> str:
    """Members that are still to be rescored."""
    return f"{{{namespace}}}:{name}:todo"


def generation_keys(namespace: str, name: BufferName, generation: int) -> list[str]:
    """The keys of one buffer in one generation, in the order of `lua/keys.lua`. All generations have one outbox."""
    # Braces: one hash slot, so that one script may touch all of them on a cluster.
    buffer = f"{{{namespace}}}:{name}"
    return [f"{buffer}:{key}" if key == "outbox" else f"{buffer}:g{generation}:{key}" for key in KEY_NAMES]


class Pointer:
    """Which generation is which, as last read. The scripts notice when it is old."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._keys = shared_keys(namespace)
        self._todo = [todo_key(namespace, name) for name in NAMES]
        self._known: GenerationState | None = None

    async def known(self) -> GenerationState:
        """The state as last read."""
        return self._known or await self.read()

    async def read(self) -> GenerationState:
        """The state now."""
        with translate(self._client):
            # No transaction: a full server refuses to queue one, and every script checks the epoch anyway.
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.hgetall(self._keys[0])
                pipe.zrange(self._keys[1], 0, -1)
                for key in self._todo:
                    pipe.zcard(key)
                fields, retired, *left = await pipe.execute()
        found = {name.decode(): value.decode() for name, value in fields.items()}

        def number(name: str) -> int | None:
            return int(found[name]) if name in found else None

        self._known = GenerationState(
            epoch=number("epoch") or 0,
            active=number("active") or 1,
            judge=found.get("judge"),
            next=number("next"),
            next_judge=found.get("next_judge"),
            started_ms=number("started"),
            total=number("total") or 0,
            left=sum(left),
            last=number("last") or 1,
            retired=frozenset(judge.decode() for judge in retired),
        )
        return self._known


class RedisBuffer:
    """See `streams.buffer.base.Buffer`. Raises `Transient` and `Fatal` as `streams.redis_client.translate` says.

    It follows its role: after a switch the active buffer is that of the new generation. `offer` raises
    `GenerationMoved` when the generations changed since they were last read, for the caller to decide anew; the buffer
    of the role `next` raises it whenever there is no such generation any more.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        namespace: str,
        name: BufferName,
        rules: BufferRules,
        clock: Clock = time.time,
        role: Role = "active",
        pointer: Pointer | None = None,
    ) -> None:
        self.rules = rules
        self._client = client
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._role: Role = role
        self._pointer = pointer or Pointer(client, namespace)
        self._threshold: float | None = None
        """As last seen. It may be old: then a script asks for all offers whole."""
        self._offer = client.register_script(source("trail", "offer"))
        self._remove = client.register_script(source("trail", "remove"))
        self._attach = client.register_script(source("attach"))
        self._claim = client.register_script(source("claim"))
        self._members = client.register_script(source("members"))
        self._scan = client.register_script(source("scan"))
        self._stats = client.register_script(source("stats"))
        self._positions = client.register_script(source("positions"))
        self._clear = client.register_script(source("clear"))

    def _keys(self, state: GenerationState) -> list[str]:
        """Of the buffer in its role, then of the state, then of the other generation, as `lua/keys.lua` has them."""
        number, other = state.number(self._role), state.number("next" if self._role == "active" else "active")
        if number is None:
            raise GenerationMoved("there is no next generation")
        keys = generation_keys(self._namespace, self._name, number)
        keys += [shared_keys(self._namespace)[0], todo_key(self._namespace, self._name)]
        return keys if other is None else keys + generation_keys(self._namespace, self._name, other)

    async def _call(self, script: Any, args: Sequence[Any], only: int | None = None, epoch: int | None = None) -> Any:
        """Runs a script on the generation of our role. With `only` it must be that one, else `GenerationMoved`; with
        `epoch` that epoch."""
        state = await self._pointer.known()
        while True:
            if epoch not in (None, state.epoch):
                raise GenerationMoved("the generations changed")
            keys, number = self._keys(state), state.number(self._role)
            if only not in (None, number):
                raise GenerationMoved(f"the {self._role} generation is {number}, not {only}")
            with translate(self._client):
                reply = await script(keys=keys, args=[*args, self._role, state.epoch])
            if reply != [b"moved"]:
                return reply
            state = await self._pointer.read()
            if script is self._offer or self._role == "next":
                raise GenerationMoved("the generations changed")

    def _now(self) -> int:
        return int(self._clock() * 1000)

    async def offer(
        self, offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        now = self._now()
        near = self.rules.near_duplicate
        state = await self._pointer.known()
        head = {
            "capacity": self.rules.capacity,
            "cap": self.rules.category_cap,
            "needed": 0 if near is None else needed(near),
            "now": now,
            "judge": one_judge(offers) or "",
            "positions": [[p.partition, p.first, p.last] for p in positions],
            "started": state.started_ms or 0,
        }
        seen = b"".join(tie(o.prompt.prompt_id) + member_key(o.prompt.id) for o in offers if self._role == "next")
        encoded = msgspec.msgpack.encode(head)
        reply = await self._call(self._offer, [encoded, seen, *self._packed(offers)], epoch=epoch)
        if reply == [b"whole"]:  # the threshold has fallen (members were removed), or is that of a former generation
            self._threshold = None
            reply = await self._call(self._offer, [encoded, seen, *self._packed(offers)], epoch=epoch)
        if reply[0] == b"judge":
            raise JudgeMismatch(reply[1].decode(), str(head["judge"]))
        if reply[0] == b"gap":
            raise BufferGap(*reply[1:])
        if offers:
            self._threshold = float(reply[1][-2]) if reply[1][-2] else None
        return [*_outcomes(offers, reply[1], self.rules, now), *_evicted(reply[2], str(head["judge"]), now)]

    def _packed(self, offers: Sequence[Offer]) -> list[bytes]:
        """Trail, head and body of each, as `lua/offer.lua` reads them. What seems to be below the threshold goes
        without what it would be compared by: that costs most."""
        packed: list[bytes] = []
        for offer in offers:
            if offer.refusal is not None:
                packed += b"", b"", b""
                continue
            head = struct.pack(">diq8s", offer.rank_key, offer.partition, offer.offset, member_key(offer.prompt.id))
            if self.may_admit(offer.rank_key):
                packed += _trail(offer, self.rules.near_duplicate), head, encode(offer.prompt)
            else:
                packed += b"", head, b""
        return packed

    def may_admit(self, rank_key: float) -> bool:
        return self._threshold is None or rank_key >= self._threshold

    async def positions(self) -> dict[int, int]:
        flat = await self._call(self._positions, [])
        return {int(partition): int(offset) for partition, offset in zip(flat[0::2], flat[1::2], strict=True)}

    async def outbox(self, limit: int) -> list[CuratedOutcome]:
        found: dict[bytes, Eviction] = {}
        with translate(self._client):
            async for field, value in self._client.hscan_iter(self._outbox, count=limit):
                found[field] = _evictions.decode(value)
                if len(found) >= limit:
                    break
        return [
            CuratedOutcome(
                id=e.id,
                outcome="evicted",
                rank_key=e.rank_key,
                threshold=e.threshold,
                detail=e.detail,
                by=e.by,
                judge=e.judge,
                ts=e.ts,
            )
            for e in found.values()
        ]

    async def outbox_done(self, evictions: Iterable[CuratedOutcome]) -> None:
        fields = [f"{e.judge}:{e.id}" for e in evictions]
        if fields:
            with translate(self._client):
                await self._client.hdel(self._outbox, *fields)

    @property
    def _outbox(self) -> str:
        return generation_keys(self._namespace, self._name, 1)[KEY_NAMES.index("outbox")]

    async def attach(self, id: str, candidates: Sequence[Candidate]) -> bool:
        args = [member_key(id), msgspec.json.encode(list(candidates))]
        return bool(await self._call(self._attach, args))

    async def unanswered(self, limit: int, admitted_before_ms: int | None = None, claim_s: float = 600) -> list[Member]:
        now = self._now()
        before = "" if admitted_before_ms is None else admitted_before_ms
        args = [limit, before, now, now + int(claim_s * 1000)]
        reply: Any = 0
        while reply == 0:  # it moves members to their index piece by piece
            reply = await self._call(self._claim, args)
        return _rows(_flat.decode(reply))

    async def top(self, n: int, offset: int = 0, lowest: bool = False) -> list[Member]:
        if n <= 0:
            return []
        return await self._read("lowest" if lowest else "top", offset, offset + n - 1)

    async def get(self, id: str) -> Member | None:
        members = await self._read("key", member_key(id))
        return members[0] if members else None

    async def _read(self, *args: str | int | bytes, only: int | None = None) -> list[Member]:
        return _rows(_flat.decode(await self._call(self._members, args, only)))

    async def members(self, ms: Sequence[bytes], only: int) -> list[Member]:
        """Those of the keys that are members, in their order. Raises `GenerationMoved` after a switch."""
        return [
            member
            for start in range(0, len(ms), SCAN_COUNT)
            for member in await self._read("m", b"".join(ms[start : start + SCAN_COUNT]), only=only)
        ]

    async def place(self, id: str) -> int | None:
        members = await self._read("key", member_key(id))
        if not members:
            return None
        rank = self._keys(await self._pointer.known())[KEY_NAMES.index("rank")]
        with translate(self._client):
            before: Any = await self._client.zrevrank(rank, tie(members[0].prompt.prompt_id) + member_key(id))
        return None if before is None else int(before) + 1

    async def remove(self, ids: Iterable[str]) -> int:
        listed = list(ids)
        keys = [member_key(id) for id in listed]
        removed = 0
        for start in range(0, len(keys), SCAN_COUNT):
            removed += await self._call(self._remove, keys[start : start + SCAN_COUNT])
        if self._role == "active" and (await self._pointer.known()).next is not None:
            coming = RedisBuffer(
                self._client, self._namespace, self._name, self.rules, self._clock, "next", self._pointer
            )
            try:
                await coming.remove(listed)
            except GenerationMoved:  # it has become the active one, or is given up
                removed += await self.remove(listed)
        return removed

    async def stats(self) -> BufferStats:
        reply = await self._call(self._stats, [])
        size, waiting, flat_meta, flat_categories, oldest, newest, *ends = reply
        meta = dict(zip(flat_meta[0::2], flat_meta[1::2], strict=True))
        lowest, highest = (members[0] if members else None for members in map(_rows, ends))
        return BufferStats(
            size=size,
            capacity=self.rules.capacity,
            threshold=lowest.rank_key if lowest and size >= self.rules.capacity else None,
            lowest_difficulty=lowest.prompt.difficulty if lowest else None,
            highest_difficulty=highest.prompt.difficulty if highest else None,
            categories={
                name.decode(): int(count)
                for name, count in zip(flat_categories[0::2], flat_categories[1::2], strict=True)
            },
            answered=size - waiting,
            admitted_total=int(meta.get(b"admitted_total", 0)),
            evicted_total=int(meta.get(b"evicted_total", 0)),
            histogram=[int(meta.get(f"bin:{i}".encode(), 0)) for i in range(HISTOGRAM_BINS)],
            oldest_admitted_at=int(float(oldest[1])) if oldest else None,
            newest_admitted_at=int(float(newest[1])) if newest else None,
            judge=meta[b"judge"].decode() if b"judge" in meta else None,
        )

    async def iterate(self, chunk: int = 250) -> AsyncIterator[list[Member]]:
        # A scan sees every member that is there from start to end, maybe twice: hence the mapping.
        only = (await self._pointer.read()).number(self._role)
        ranks: dict[bytes, float] = {}
        cursor: bytes | None = None
        try:
            while cursor != b"0":
                cursor, packed = await self._call(self._scan, [cursor or b"0", SCAN_COUNT], only)
                ranks.update(struct.iter_unpack(">12sd", packed))
            ms = sorted(ranks, key=lambda m: (ranks[m], m), reverse=True)
            for start in range(0, max(1, len(ms)), chunk):  # once also for none: the scan was of the right generation?
                members = await self._read("m", b"".join(ms[start : start + chunk]), only=only)
                if members:
                    yield members
        except GenerationMoved:
            raise Transient(SWITCHED) from None

    async def clear(self) -> None:
        await self._call(self._clear, ["1" if self._name == "main" else ""])


def _trail(offer: Offer, near: float | None) -> bytes:
    """The trail of a member, as `lua/trail.lua` reads it."""
    prompt = offer.prompt
    compared = NOT_COMPARED
    if near is not None:
        compared = offer.sketch or sketch(conversation_text(prompt.messages), near)
    category, id = prompt.category.encode()[:0xFFFF], prompt.id.encode()
    return b"".join(
        (
            tie(prompt.prompt_id),
            sortable(offer.rank_key),
            blake2b(category, digest_size=8).digest(),
            bytes((difficulty_bin(prompt.difficulty), len(compared.slots), len(compared.bands) // 4)),
            compared.slots,
            compared.bands,
            struct.pack(">H", len(category)),
            category,
            struct.pack(">H", len(id)),
            id,
        )
    )


def _outcomes(offers: Sequence[Offer], flat: list[Any], rules: BufferRules, now: int) -> list[CuratedOutcome]:
    outcomes = []
    for offer, kind, detail, threshold, failed in zip(offers, *(flat[i::4] for i in range(4)), strict=True):
        beat = float(threshold) if threshold else None
        if offer.refusal is not None:
            outcomes.append(judged(offer, offer.refusal, beat))
            continue
        value, bound = None, None
        if kind == b"near_duplicate":
            value, bound = failed / SLOTS, rules.near_duplicate
        elif kind == b"category_full":
            value, bound = float(failed), float(rules.category_cap)
        outcome = CuratedOutcome(
            id=offer.prompt.id,
            outcome=kind.decode(),
            rank_key=offer.rank_key,
            threshold=beat,
            detail=detail.decode() or None,
            value=value,
            bound=bound,
            judge=offer.prompt.judge,
            ts=now,
        )
        outcomes.append(outcome)
    return outcomes


def _evicted(flat: list[bytes], judge: str, now: int) -> list[CuratedOutcome]:
    return [
        CuratedOutcome(
            id=id.decode(),
            outcome="evicted",
            rank_key=float(rank_key),
            threshold=float(threshold) if threshold else None,
            detail=detail.decode() or None,
            by=by.decode(),
            judge=judge,
            ts=now,
        )
        for id, rank_key, threshold, detail, by in zip(*(flat[i::5] for i in range(5)), strict=True)
    ]


def _rows(flat: Sequence[Any]) -> list[Member]:
    """Members of a flat list as `read` of `lua/keys.lua` makes it."""
    members = []
    for body, answers, alike, rank, age in zip(*(flat[i::5] for i in range(5)), strict=True):
        if not body or not rank or not age:
            continue
        member = Member(
            prompt=_prompts.decode(body),
            rank_key=float(rank),
            admitted_at=int(float(age)),
            near_duplicates=int(alike or 0),
            candidates=_candidates.decode(answers) if answers else [],
        )
        members.append(member)
    return members
