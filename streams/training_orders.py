"""What operators ask of the trigger: a run now, a pause. In Redis, apart from the trigger's own memory.

Whoever asks does not hold the trigger's lease, and the trigger writes its memory whole. So orders have fields of their
own that the trigger never overwrites: it only takes off the requests that a run was decided for, in the script that
stores that run (`streams.training_state`). A request that comes while a snapshot is being written is not in that
snapshot's run, and stays for the next one.
"""

import getpass
import os
import socket
import time
import uuid

import msgspec
import redis.asyncio

from streams.errors import Fatal
from streams.redis_client import address, translate

# KEYS: the trigger's memory (hash), open requests (hash: id → JSON).  ARGV: id, JSON.
# Returns how many are open; 0 when it is a repeat of one that a run was decided for already.
ASK = """
local taken = redis.call('HGET', KEYS[1], 'taken') or ''
if string.find(taken, ARGV[1], 1, true) then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return redis.call('HLEN', KEYS[2])
"""


class Pause(msgspec.Struct, kw_only=True, frozen=True):
    """No run is begun. One that goes on is not ended."""

    since_ms: int
    until_ms: int | None = None
    """Epoch milliseconds, like all times here; null: until it is resumed."""
    reason: str = ""
    by: str = ""

    def holds(self, now_ms: int) -> bool:
        """Whether it is not over yet."""
        return self.until_ms is None or now_ms < self.until_ms


class AskedRun(msgspec.Struct, kw_only=True, frozen=True):
    """A run that somebody asked for."""

    id: str
    at_ms: int
    reason: str = ""
    by: str = ""


class Orders(msgspec.Struct, kw_only=True, frozen=True):
    """What is asked for at one moment."""

    pause: Pause | None = None
    """Also one that is over by now, until it is resumed or replaced."""
    asked: list[AskedRun] = []
    """Not decided yet, the oldest first. One run is made for all of them."""


def training_keys(namespace: str) -> tuple[str, str]:
    """The trigger's memory (hash: fencing, state, taken; and `pause`, which operators write), the open requests."""
    return f"{{{namespace}}}:training", f"{{{namespace}}}:training:asked"


class TrainingOrders:
    """The orders of one namespace. Methods raise `Transient` or `Fatal` as `streams.redis_client` says."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._memory, self._asked = training_keys(namespace)
        self._ask = client.register_script(ASK)

    async def read(self) -> Orders:
        """All that is asked for."""
        with translate(self._client):
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hget(self._memory, "pause")
                pipe.hgetall(self._asked)
                pause, asked = await pipe.execute()
        try:
            found = [msgspec.json.decode(value, type=AskedRun) for value in asked.values()]
            return Orders(
                pause=msgspec.json.decode(pause, type=Pause) if pause else None,
                asked=sorted(found, key=lambda run: (run.at_ms, run.id)),
            )
        except msgspec.MsgspecError as error:
            raise Fatal(
                f"Redis at {address(self._client)}: orders in {self._memory} cannot be read ({error}); another version "
                "wrote them?"
            ) from None

    async def ask(self, run: AskedRun) -> None:
        """Ask for a run that is decided after this. Asking again with the same id changes nothing."""
        with translate(self._client):
            await self._ask(keys=[self._memory, self._asked], args=[run.id, msgspec.json.encode(run)])

    async def withdraw(self) -> list[AskedRun]:
        """Take back all requests for which no run is decided yet; which they were."""
        open_runs = (await self.read()).asked
        with translate(self._client):
            return [run for run in open_runs if await self._client.hdel(self._asked, run.id)]

    async def pause(self, pause: Pause) -> None:
        """From now on no run is decided; it replaces an earlier pause."""
        with translate(self._client):
            await self._client.hset(self._memory, "pause", msgspec.json.encode(pause))

    async def resume(self) -> None:
        """End the pause, if there is one."""
        with translate(self._client):
            await self._client.hdel(self._memory, "pause")


async def request_run(client: redis.asyncio.Redis, namespace: str, reason: str, by: str | None = None) -> AskedRun:
    """Ask the trigger for one run, whose snapshot is begun after this; without a reason of the policy, and without
    waiting for its guards (`agents.rules.policy`). Raises `Transient` or `Fatal`.

    `by` says who asks (null: this user on this machine). Several requests before the trigger looks make one run.
    """
    run = AskedRun(id=uuid.uuid4().hex, at_ms=int(time.time() * 1000), reason=reason, by=by or operator())
    await TrainingOrders(client, namespace).ask(run)
    return run


def operator() -> str:
    """`user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
