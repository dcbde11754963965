-- Offsets applied. Keys: keys.lua.  Returns a flat list: partition, last offset.

return redis.call('HGETALL', POSITIONS)
