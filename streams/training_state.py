"""What the trigger remembers between its decisions, in Redis, written only under the newest fencing number."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import redis.asyncio

from streams.errors import Fatal
from streams.records import TrainRequest
from streams.redis_client import address, translate
from streams.training_orders import training_keys

# The state is a hash: fencing, state, taken (ids of the requests that the last run was decided for), and `pause`,
# which is an operator's (streams/training_orders.py).

# KEYS: the state.  ARGV: fencing number, JSON of the state.  Returns 1, or 0 when refused.
SAVE = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'fencing') or 0)
if tonumber(ARGV[1]) < newest then return 0 end
redis.call('HSET', KEYS[1], 'fencing', ARGV[1], 'state', ARGV[2])
return 1
"""

# KEYS: the state, open requests (hash: id → JSON).
# ARGV: fencing number, JSON of the state, now (epoch milliseconds), ids of the requests that this run is for.
# Returns what `decided` says. A client whose answer was lost calls again: what is stored is stored.
DECIDED = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'fencing') or 0)
if tonumber(ARGV[1]) < newest then return 'stale' end
if redis.call('HGET', KEYS[1], 'state') == ARGV[2] then return 'stored' end
local pause = redis.call('HGET', KEYS[1], 'pause')
if pause then
  local ends = cjson.decode(pause).until_ms
  if type(ends) ~= 'number' or tonumber(ARGV[3]) < ends then return 'paused' end
end
local ids = {}
for i = 4, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then return 'withdrawn' end
  ids[#ids + 1] = ARGV[i]
end
for _, id in ipairs(ids) do redis.call('HDEL', KEYS[2], id) end
redis.call('HSET', KEYS[1], 'fencing', ARGV[1], 'state', ARGV[2], 'taken', table.concat(ids, ' '))
return 'stored'
"""

# KEYS: the state.  ARGV: fencing number.  Returns the JSON of the state ("" when there is none), or nil when refused.
CLAIM = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'fencing') or 0)
if tonumber(ARGV[1]) < newest then return nil end
redis.call('HSET', KEYS[1], 'fencing', ARGV[1])
return redis.call('HGET', KEYS[1], 'state') or ''
"""

Stored = Literal["stored", "stale", "paused", "withdrawn"]


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
    last_run_ended: bool = False
    """Its final event was seen: it need not be in the log for ever."""
    watched_since_ms: int | None = None
    """When a trigger first decided."""
    answers_wanted: bool = False
    """A run waits only for answers."""
    last_decision: dict[str, Any] | None = None


class TrainingStateStore:
    """The state of one namespace. Methods raise `Transient` or `Fatal` as `streams.redis_client` says."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._key, self._asked = training_keys(namespace)
        self._save = client.register_script(SAVE)
        self._claim = client.register_script(CLAIM)
        self._decided = client.register_script(DECIDED)

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

    async def decided(self, state: TrainingState, fencing: int, now_ms: int, taken: Sequence[str]) -> Stored:
        """Store a state with a new run pending, and in the same call take off the requests that the run is for.

        Nothing changes when a higher fencing number has written already (`stale`), and when an operator has paused
        training (`paused`) or taken one of the requests back (`withdrawn`) since the decision.
        """
        arguments: list[int | bytes | str] = [fencing, msgspec.json.encode(state), now_ms, *taken]
        with translate(self._client):
            said = await self._decided(keys=[self._key, self._asked], args=arguments)
        return msgspec.convert(said.decode(), Stored)  # type: ignore[no-any-return]
