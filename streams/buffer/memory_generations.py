"""The reference of `streams.buffer.generations`, in plain Python."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streams.buffer.base import BufferName, BufferRules, Clock, JudgeMismatch, Offer, Position
from streams.buffer.generations import Begun, GenerationMoved, GenerationState
from streams.buffer.memory import MemoryBuffer
from streams.records import CuratedOutcome, Member


class MemoryGenerations:
    """See `streams.buffer.generations.Generations`."""

    def __init__(self, main: BufferRules, held_out: BufferRules, clock: Clock = time.time) -> None:
        self._clock = clock
        self.main, self.held_out = _Active(main, clock, self), _Active(held_out, clock, self)
        self._next: dict[BufferName, _Next] = {}
        self._state = GenerationState()
        self.judge: str | None = None

    @property
    def next_main(self) -> MemoryBuffer:
        return self._coming("main")

    @property
    def next_held_out(self) -> MemoryBuffer:
        return self._coming("eval")

    def _coming(self, name: BufferName) -> MemoryBuffer:
        if name not in self._next:
            raise GenerationMoved("there is no next generation")
        return self._next[name]

    def _actives(self) -> dict[BufferName, "_Active"]:
        return {"main": self.main, "eval": self.held_out}

    async def known(self) -> GenerationState:
        return await self.read()

    async def read(self) -> GenerationState:
        return _replace(self._state, judge=self.judge, left=len(self.main.todo) + len(self.held_out.todo))

    async def begin(self, judge: str, forced: bool = False) -> Begun:
        state = await self.read()
        if state.judge is None:
            return "empty"
        if state.next_judge == judge:
            return "running"
        if not forced and state.judge == judge:
            return "same"
        if not forced and judge in state.retired:
            return "retired"
        now = int(self._clock() * 1000)
        retired = state.retired | ({state.next_judge} if state.next_judge not in (None, state.judge) else set())
        for name, active in self._actives().items():
            self._next[name] = _Next(active.rules, self._clock, judge, self)
            active.pair(self._next[name], now)
        self._state = _replace(
            state,
            epoch=state.epoch + 1,
            next=state.last + 1,
            last=state.last + 1,
            next_judge=judge,
            started_ms=now,
            total=len(self.main.todo) + len(self.held_out.todo),
            retired=frozenset(retired - {judge}),
        )
        return "begun"

    async def cancel(self) -> bool:
        state = await self.read()
        if state.next is None:
            return False
        for active in self._actives().values():
            active.part()
        self._end(state, retire=state.next_judge, active=state.active, judge=state.judge)
        return True

    async def switch(self) -> bool:
        state = await self.read()
        if state.next is None or self.main.todo or self.held_out.todo:
            return False
        for name, active in self._actives().items():
            active.become(self._next[name])
        self._end(state, retire=state.judge, active=state.next, judge=state.next_judge)
        return True

    def _end(self, state: GenerationState, *, retire: str | None, active: int, judge: str | None) -> None:
        self._next = {}
        self.judge = judge
        self._state = GenerationState(
            epoch=state.epoch + 1,
            active=active,
            last=state.last,
            retired=state.retired | ({retire} if retire is not None and retire != judge else set()),
        )

    async def todo(self, name: BufferName) -> list[bytes]:
        return [key for key, _ in self._actives()[name].listed()]

    async def waiting(self, name: BufferName, keys: Sequence[bytes]) -> list[Member]:
        if self._state.next is None:
            raise GenerationMoved("there is no next generation")
        ids = dict(self._actives()[name].listed())
        found = [await self._actives()[name].get(ids[key]) for key in keys if key in ids]
        return [member for member in found if member is not None]

    async def skip(self, name: BufferName, ids: Iterable[str]) -> None:
        self._actives()[name].todo -= set(ids)

    async def fence(self) -> None:
        self._state = _replace(self._state, epoch=self._state.epoch + 1)

    def same(self, epoch: int | None) -> None:
        """Raises `GenerationMoved` when the epoch is over."""
        if epoch not in (None, self._state.epoch):
            raise GenerationMoved("the generations changed")

    async def sweep(self) -> int:
        return 0


class _Active(MemoryBuffer):
    """Both actives have one judge: that of the first record of either."""

    def __init__(self, rules: BufferRules, clock: Clock, owner: MemoryGenerations) -> None:
        super().__init__(rules, clock)
        self._owner = owner

    async def offer(
        self, offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        self._owner.same(epoch)
        for offer in offers:
            if self._owner.judge not in (None, offer.prompt.judge):
                raise JudgeMismatch(str(self._owner.judge), offer.prompt.judge)
        found = await super().offer(offers, positions)
        if offers and self._owner.judge is None:
            self._owner.judge = offers[0].prompt.judge
        return found

    async def clear(self) -> None:
        await super().clear()
        if self is self._owner.main:
            self._owner.judge = None


class _Next(MemoryBuffer):
    """Takes its own judge's records only."""

    def __init__(self, rules: BufferRules, clock: Clock, judge: str, owner: MemoryGenerations) -> None:
        super().__init__(rules, clock)
        self._expected = judge
        self._owner = owner

    async def offer(
        self, offers: Sequence[Offer], positions: Sequence[Position], epoch: int | None = None
    ) -> list[CuratedOutcome]:
        self._owner.same(epoch)
        for offer in offers:
            if offer.prompt.judge != self._expected:
                raise JudgeMismatch(self._expected, offer.prompt.judge)
        return await super().offer(offers, positions)


def _replace(state: GenerationState, **changes: Any) -> GenerationState:
    return msgspec.structs.replace(state, **changes)
