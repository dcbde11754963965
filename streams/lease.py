"""A lease in Redis: at most one holder works, and its fencing number shows who came later.

A holder that stalls past `ttl_s` may believe that it still holds the lease. So whatever it writes carries the fencing
number, and the receiver refuses a lower one than it has seen (Kleppmann, "How to do distributed locking", 2016).
"""

import uuid

import redis.asyncio

from streams.redis_client import translate

# KEYS: the lease (hash: token, fencing; expires), the counter of fencing numbers (never expires).
# ARGV: token, time to live (ms).  Returns the fencing number, or 0 when somebody else holds it.
# A holder that asks again keeps its number: a repeat whose first answer got lost changes nothing.
HOLD = """
local token = redis.call('HGET', KEYS[1], 'token')
if token and token ~= ARGV[1] then return 0 end
local fencing
if token then
  fencing = tonumber(redis.call('HGET', KEYS[1], 'fencing'))
else
  fencing = redis.call('INCR', KEYS[2])
  redis.call('HSET', KEYS[1], 'token', ARGV[1], 'fencing', fencing)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return fencing
"""

# KEYS: the lease.  ARGV: token, time to live (ms).  Returns 1 when it was still held by the token.
RENEW = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: the lease.  ARGV: token.  Returns 1 when it was held by the token.
RELEASE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class Lease:
    """One contender for the lease `name`. All methods raise `Transient` or `Fatal` as `streams.redis_client` says."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str, name: str, ttl_s: float) -> None:
        self._client = client
        self._keys = [f"{{{namespace}}}:lease:{name}", f"{{{namespace}}}:lease:{name}:fencing"]
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._token = uuid.uuid4().hex
        self._hold = client.register_script(HOLD)
        self._renew = client.register_script(RENEW)
        self._release = client.register_script(RELEASE)

    async def hold(self) -> int | None:
        """Take the lease, or prolong it when we hold it: our fencing number, None when another holds it."""
        with translate(self._client):
            fencing = await self._hold(keys=self._keys, args=[self._token, self._ttl_ms])
        return int(fencing) or None

    async def renew(self) -> bool:
        """Prolong the lease without ever taking it anew: False when it ran out or another holds it."""
        with translate(self._client):
            return bool(await self._renew(keys=self._keys[:1], args=[self._token, self._ttl_ms]))

    async def release(self) -> bool:
        """Give the lease back at once: False when we no longer held it."""
        with translate(self._client):
            return bool(await self._release(keys=self._keys[:1], args=[self._token]))
