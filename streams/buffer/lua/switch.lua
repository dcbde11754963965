-- The next generation becomes the active one, if all of the active one has been rated for it.
--
-- KEYS  1 state, 2 retired, 3 old, todo of 4 main and 5 eval (as in begin.lua)
-- ARGV  epoch as the caller knows it, now (ms)
-- Returns 'switched', or why nothing changed: 'moved', 'none', 'unfinished'

local STATE, RETIRED, OLD = KEYS[1], KEYS[2], KEYS[3]

if (redis.call('HGET', STATE, 'epoch') or '0') ~= ARGV[1] then return 'moved' end
local number, judge = redis.call('HGET', STATE, 'next'), redis.call('HGET', STATE, 'next_judge')
if not number then return 'none' end
if redis.call('ZCARD', KEYS[4]) + redis.call('ZCARD', KEYS[5]) > 0 then return 'unfinished' end

local before = redis.call('HGET', STATE, 'judge')
if before and before ~= judge then redis.call('ZADD', RETIRED, ARGV[2], before) end
redis.call('SADD', OLD, redis.call('HGET', STATE, 'active') or '1')
redis.call('HSET', STATE, 'active', number, 'judge', judge)
redis.call('HDEL', STATE, 'next', 'next_judge', 'started', 'total')
redis.call('HINCRBY', STATE, 'epoch', 1)
return 'switched'
