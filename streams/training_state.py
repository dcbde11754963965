"""What the trigger remembers between its decisions, in Redis, written only under the newest fencing number."""

from typing import Any

import msgspec
import redis.asyncio

from streams.errors import Fatal
from streams.records import TrainRequest
from streams.redis_client import address, translate

# KEYS: the state (hash: fencing, state).  ARGV: fencing number, JSON of the state.  Returns 1, or 0 when refused.
SAVE = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'fencing') or 0)
if tonumber(ARGV[1]) < newest then return 0 end
redis.call('HSET', KEYS[1], 'fencing', ARGV[1], 'state', ARGV[2])
return 1
"""

# KEYS: the state.  ARGV: fencing number.  Returns the JSON of the state ("" when there is none), or nil when refused.
CLAIM = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'fencing') or 0)
if tonumber(ARGV[1]) < newest then return nil end
redis.call('HSET', KEYS[1], 'fencing', ARGV[1])
return redis.call('HGET', KEYS[1], 'state') or ''
"""


class TrainingState(msgspec.Struct, kw_only=True):
    """Everything about earlier runs that a decision needs. Times are epoch milliseconds."""

    last_run_id: str | None = None
    last_run_at_ms: int | None = None
    """When it was requested."""
    admitted_total_at_last_run: int = 0
    """`BufferStats.admitted_total` of its snapshot."""
    histogram_at_last_run: list[int] | None = None
    """`BufferStats.histogram` of its snapshot."""
    judge_at_last_run: str | None = None
    """Whose ratings that histogram is of: those of two judges are not compared."""
    runs_ms: list[int] = []
    """When the runs of the last day were requested."""
    pending: TrainRequest | None = None
    """Decided, but not yet known to be in `train.requests`."""
    paused: bool = False
    """By an operator, besides the setting."""
    answers_wanted: bool = False
    """A run waits only for answers."""
    last_decision: dict[str, Any] | None = None


class TrainingStateStore:
    """The state of one namespace. Methods raise `Transient` or `Fatal` as `streams.redis_client` says."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._key = f"{{{namespace}}}:training"
        self._save = client.register_script(SAVE)
        self._claim = client.register_script(CLAIM)

    async def load(self) -> TrainingState:
        """The state as last saved; a new one when there is none."""
        with translate(self._client):
            # redis-py types hget as sync or async in one
            value: bytes | None = await self._client.hget(self._key, "state")  # type: ignore[assignment]
        return self._read(value)

    async def claim(self, fencing: int) -> TrainingState | None:
        """The state as last saved, and from now on no lower fencing number writes it; None when a higher one has it.

        Who decides by the state claims it: else a holder that was overtaken could still write between this one's
        reading and writing, and both would act on the same state.
        """
        with translate(self._client):
            value: bytes | None = await self._claim(keys=[self._key], args=[fencing])
        return None if value is None else self._read(value)

    def _read(self, value: bytes | None) -> TrainingState:
        if not value:
            return TrainingState()
        try:
            return msgspec.json.decode(value, type=TrainingState)
        except msgspec.MsgspecError as error:
            raise Fatal(
                f"Redis at {address(self._client)}: {self._key} cannot be read ({error}); another version wrote it?"
            ) from None

    async def save(self, state: TrainingState, fencing: int) -> bool:
        """Store the state; False (and nothing changed) when a higher fencing number has written already."""
        with translate(self._client):
            return bool(await self._save(keys=[self._key], args=[fencing, msgspec.json.encode(state)]))
