"""The generations in Redis: two buffers in two roles, and the scripts that change which generation is which."""

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis.asyncio

from streams.buffer.base import BufferName, BufferRules, Clock
from streams.buffer.generations import Begun, GenerationMoved, GenerationState
from streams.buffer.rank import member_key
from streams.buffer.redis import KEY_NAMES, NAMES, Pointer, RedisBuffer, generation_keys, script, shared_keys, todo_key
from streams.records import Member
from streams.redis_client import translate

FENCE_STEP = 2**20


class RedisGenerations:
    """See `streams.buffer.generations.Generations`. One Redis client for all of it."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        namespace: str,
        main: BufferRules,
        held_out: BufferRules,
        clock: Clock = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._clock = clock
        self._pointer = pointer = Pointer(client, namespace)
        self.main = RedisBuffer(client, namespace, "main", main, clock, "active", pointer)
        self.held_out = RedisBuffer(client, namespace, "eval", held_out, clock, "active", pointer)
        self.next_main = RedisBuffer(client, namespace, "main", main, clock, "next", pointer)
        self.next_held_out = RedisBuffer(client, namespace, "eval", held_out, clock, "next", pointer)
        self._begin = client.register_script(script("begin"))
        self._switch = client.register_script(script("switch"))
        self._cancel = client.register_script(script("cancel"))

    async def known(self) -> GenerationState:
        return await self._pointer.known()

    async def read(self) -> GenerationState:
        return await self._pointer.read()

    def _common(self) -> list[str]:
        return [*shared_keys(self._namespace), *(todo_key(self._namespace, name) for name in NAMES)]

    async def begin(self, judge: str, forced: bool = False) -> Begun:
        while True:
            state = await self._pointer.read()
            number = state.last + 1
            keys = self._common()
            keys += [_key(self._namespace, name, state.active, "rank") for name in NAMES]
            keys += [_key(self._namespace, name, state.active, "meta") for name in NAMES]
            keys += [_key(self._namespace, "main", state.active, "positions")]
            keys += [_key(self._namespace, name, number, "meta") for name in NAMES]
            keys += [_key(self._namespace, "main", number, "positions")]
            reply = await self._run(self._begin, keys, [state.epoch, judge, number, self._now(), "1" if forced else ""])
            if reply != "moved":  # a call whose answer got lost and that is repeated finds itself `running`
                return reply  # type: ignore[return-value]

    async def cancel(self) -> bool:
        return await self._change(self._cancel) == "cancelled"

    async def switch(self) -> bool:
        return await self._change(self._switch) == "switched"

    async def _change(self, change: Any) -> str:
        state = await self._pointer.read()
        reply = await self._run(change, self._common(), [state.epoch, self._now()])
        if reply == "moved" and state.next is not None:
            # By somebody else, or by this very call, whose answer got lost and which was repeated.
            now = await self._pointer.read()
            if now.epoch == state.epoch + 1 and now.next is None:
                return "switched" if now.active == state.next else "cancelled"
        return reply

    async def _run(self, change: Any, keys: Sequence[str], args: Sequence[Any]) -> str:
        with translate(self._client):
            reply: bytes = await change(keys=keys, args=args)
        await self._pointer.read()
        return reply.decode()

    async def todo(self, name: BufferName) -> list[bytes]:
        with translate(self._client):
            found: Any = await self._client.zrange(todo_key(self._namespace, name), 0, -1, desc=True)
        return list(found)

    async def waiting(self, name: BufferName, keys: Sequence[bytes]) -> list[Member]:
        state = await self._pointer.known()
        if state.next is None:
            raise GenerationMoved("there is no next generation")
        return await self._active(name).members(keys, only=state.active)

    async def skip(self, name: BufferName, ids: Iterable[str]) -> None:
        wanted = {member_key(id) for id in ids}
        gone = [m for m in await self.todo(name) if m[4:] in wanted]
        if gone:
            with translate(self._client):
                await self._client.zrem(todo_key(self._namespace, name), *gone)

    async def fence(self) -> None:
        # By a random step: when Redis comes back older and is fenced again, no epoch of before comes back with it.
        with translate(self._client):
            await self._client.hincrby(shared_keys(self._namespace)[0], "epoch", random.randint(1, FENCE_STEP))
        await self._pointer.read()

    async def sweep(self) -> int:
        old = shared_keys(self._namespace)[2]
        with translate(self._client):
            numbers = await self._client.smembers(old)
            for number in sorted(numbers):
                keys = [key for name in NAMES for key in generation_keys(self._namespace, name, int(number))]
                await self._client.unlink(*(key for key in keys if not key.endswith(":outbox")))
                await self._client.srem(old, number)
        return len(numbers)

    def _active(self, name: BufferName) -> RedisBuffer:
        return self.main if name == "main" else self.held_out

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _key(namespace: str, name: BufferName, generation: int, key: str) -> str:
    return generation_keys(namespace, name, generation)[KEY_NAMES.index(key)]
