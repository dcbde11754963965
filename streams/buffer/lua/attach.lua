-- Store the answers of a member. Keys: keys.lua (trail, answers, fresh, open, claims).
-- ARGV: key (8 bytes), JSON of the candidates.  Returns 1, or 0 when it is no member any more.

local key = ARGV[1]
local trail = redis.call('HGET', TRAIL, key)
if not trail then return 0 end
local m = sub(trail, 1, 4) .. key
redis.call('HSET', ANSWERS, key, ARGV[2])
redis.call('ZREM', FRESH, m)
redis.call('ZREM', OPEN, m)
redis.call('ZREM', CLAIMS, m)
return 1
