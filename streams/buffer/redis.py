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
from streams.buffer.minhash import SLOTS, Sketch, conversation_text, needed, sketch
from streams.buffer.rank import member_key, sortable, tie
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
NOT_COMPARED = Sketch(b"", b"")
SCAN_COUNT = 1000
"""Members that one step of a scan looks at: under a millisecond of Redis."""

_prompts = msgspec.json.Decoder(ScoredPrompt)
_candidates = msgspec.json.Decoder(list[Candidate])


class Eviction(msgspec.Struct):
    """An entry of the outbox."""

    rank_key: float
    ts: int
    threshold: float | None = None
    detail: str | None = None
    by: str | None = None


_evictions = msgspec.msgpack.Decoder(Eviction)


@cache
def source(*parts: str) -> str:
    """A script: the files of `lua/` one after the other, the key schema first."""
    folder = files("streams.buffer") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("keys", *parts))


class RedisBuffer:
    """See `streams.buffer.base.Buffer`. Raises `Transient` and `Fatal` as `streams.redis_client.translate` says."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        namespace: str,
        name: BufferName,
        rules: BufferRules,
        clock: Clock = time.time,
        generation: int = 1,
    ) -> None:
        self.rules = rules
        self._client = client
        self._clock = clock
        # Braces: one hash slot, so that one script may touch all of them on a cluster.
        self._keys = [f"{{{namespace}}}:{name}:g{generation}:{key}" for key in KEY_NAMES]
        self._offer = client.register_script(source("trail", "offer"))
        self._remove = client.register_script(source("trail", "remove"))
        self._attach = client.register_script(source("attach"))
        self._claim = client.register_script(source("claim"))
        self._members = client.register_script(source("members"))
        self._stats = client.register_script(source("stats"))

    def _key(self, name: str) -> str:
        return self._keys[KEY_NAMES.index(name)]

    def _now(self) -> int:
        return int(self._clock() * 1000)

    async def offer(self, offers: Sequence[Offer], positions: Sequence[Position]) -> list[CuratedOutcome]:
        now = self._now()
        near = self.rules.near_duplicate
        head = {
            "capacity": self.rules.capacity,
            "cap": self.rules.category_cap,
            "needed": 0 if near is None else needed(near),
            "now": now,
            "judge": one_judge(offers) or "",
            "positions": [[p.partition, p.first, p.last] for p in positions],
        }
        args: list[bytes] = [msgspec.msgpack.encode(head)]
        for offer in offers:
            args += (b"", b"", b"") if offer.refusal is not None else _packed(offer, near)
        with translate(self._client):
            reply = await self._offer(keys=self._keys, args=args)
        if reply[0] == b"judge":
            raise JudgeMismatch(reply[1].decode(), str(head["judge"]))
        if reply[0] == b"gap":
            raise BufferGap(*reply[1:])
        return [*_outcomes(offers, reply[1], self.rules, now), *_evicted(reply[2], now)]

    async def positions(self) -> dict[int, int]:
        with translate(self._client):
            fields = await self._client.hgetall(self._key("positions"))
        return {int(partition): int(offset) for partition, offset in fields.items()}

    async def outbox(self, limit: int) -> list[CuratedOutcome]:
        found: dict[bytes, Eviction] = {}
        with translate(self._client):
            async for id, value in self._client.hscan_iter(self._key("outbox"), count=limit):
                found[id] = _evictions.decode(value)
                if len(found) >= limit:
                    break
        return [
            CuratedOutcome(
                id=id.decode(),
                outcome="evicted",
                rank_key=e.rank_key,
                threshold=e.threshold,
                detail=e.detail,
                by=e.by,
                ts=e.ts,
            )
            for id, e in found.items()
        ]

    async def outbox_done(self, ids: Iterable[str]) -> None:
        fields = list(ids)
        if fields:
            with translate(self._client):
                await self._client.hdel(self._key("outbox"), *fields)

    async def attach(self, id: str, candidates: Sequence[Candidate]) -> bool:
        with translate(self._client):
            reply = await self._attach(keys=self._keys, args=[member_key(id), msgspec.json.encode(list(candidates))])
        return bool(reply)

    async def unanswered(self, limit: int, admitted_before_ms: int | None = None, claim_s: float = 600) -> list[Member]:
        now = self._now()
        before = "" if admitted_before_ms is None else admitted_before_ms
        args = [limit, before, now, now + int(claim_s * 1000)]
        reply: Any = 0
        with translate(self._client):
            while reply == 0:  # it moves members to their index piece by piece
                reply = await self._claim(keys=self._keys, args=args)
        return _rows(reply)

    async def top(self, n: int, offset: int = 0, lowest: bool = False) -> list[Member]:
        if n <= 0:
            return []
        return await self._read("lowest" if lowest else "top", offset, offset + n - 1)

    async def get(self, id: str) -> Member | None:
        members = await self._read("key", member_key(id))
        return members[0] if members else None

    async def _read(self, *args: str | int | bytes) -> list[Member]:
        with translate(self._client):
            return _rows(await self._members(keys=self._keys, args=list(args)))

    async def place(self, id: str) -> int | None:
        members = await self._read("key", member_key(id))
        if not members:
            return None
        with translate(self._client):
            before: Any = await self._client.zrevrank(
                self._key("rank"), tie(members[0].prompt.prompt_id) + member_key(id)
            )
        return None if before is None else int(before) + 1

    async def remove(self, ids: Iterable[str]) -> int:
        keys = [member_key(id) for id in ids]
        removed = 0
        for start in range(0, len(keys), SCAN_COUNT):
            with translate(self._client):
                removed += await self._remove(keys=self._keys, args=keys[start : start + SCAN_COUNT])
        return removed

    async def stats(self) -> BufferStats:
        with translate(self._client):
            reply = await self._stats(keys=self._keys)
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

    async def iterate(self, chunk: int = 500) -> AsyncIterator[list[Member]]:
        # A scan sees every member that is there from start to end, maybe twice: hence the mapping.
        ranks: dict[bytes, float] = {}
        with translate(self._client):
            async for m, rank in self._client.zscan_iter(self._key("rank"), count=SCAN_COUNT):
                ranks[m] = rank
        ms = sorted(ranks, key=lambda m: (ranks[m], m), reverse=True)
        for start in range(0, len(ms), chunk):
            members = await self._read("m", *ms[start : start + chunk])
            if members:
                yield members

    async def clear(self) -> None:
        with translate(self._client):
            await self._client.unlink(*self._keys)  # frees in the background, whatever the size


def _packed(offer: Offer, near: float | None) -> tuple[bytes, bytes, bytes]:
    """Trail, head and body of an offer, as `lua/trail.lua` and `lua/offer.lua` read them."""
    prompt = offer.prompt
    compared = NOT_COMPARED if near is None else sketch(conversation_text(prompt.messages), near)
    category, id = prompt.category.encode()[:0xFFFF], prompt.id.encode()
    trail = b"".join(
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
    head = struct.pack(">diq8s", offer.rank_key, offer.partition, offer.offset, member_key(prompt.id))
    return trail, head, encode(prompt)


def _outcomes(offers: Sequence[Offer], flat: list[Any], rules: BufferRules, now: int) -> list[CuratedOutcome]:
    outcomes = []
    for offer, kind, detail, threshold, failed in zip(offers, *(flat[i::4] for i in range(4)), strict=True):
        beat = float(threshold) if threshold else None
        if offer.refusal is not None:
            outcomes.append(judged(offer.refusal, offer.rank_key, beat))
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
            ts=now,
        )
        outcomes.append(outcome)
    return outcomes


def _evicted(flat: list[bytes], now: int) -> list[CuratedOutcome]:
    return [
        CuratedOutcome(
            id=id.decode(),
            outcome="evicted",
            rank_key=float(rank_key),
            threshold=float(threshold) if threshold else None,
            detail=detail.decode() or None,
            by=by.decode(),
            ts=now,
        )
        for id, rank_key, threshold, detail, by in zip(*(flat[i::5] for i in range(5)), strict=True)
    ]


def _rows(flat: list[bytes | None]) -> list[Member]:
    """Members of a flat list as `read` of `lua/keys.lua` makes it."""
    members = []
    for body, answers, alike, rank, age in zip(*(flat[i::5] for i in range(5)), strict=True):
        if body is None or rank is None or age is None:
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
