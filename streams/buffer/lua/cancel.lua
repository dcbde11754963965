-- The next generation is given up; its judge counts as retired.
--
-- KEYS  1 state, 2 retired, 3 old, todo of 4 main and 5 eval (as in begin.lua)
-- ARGV  epoch as the caller knows it, now (ms)
-- Returns 'cancelled', or why nothing changed: 'moved', 'none'

local STATE, RETIRED, OLD = KEYS[1], KEYS[2], KEYS[3]

if (redis.call('HGET', STATE, 'epoch') or '0') ~= ARGV[1] then return 'moved' end
local number, judge = redis.call('HGET', STATE, 'next'), redis.call('HGET', STATE, 'next_judge')
if not number then return 'none' end

if judge ~= redis.call('HGET', STATE, 'judge') then redis.call('ZADD', RETIRED, ARGV[2], judge) end
redis.call('SADD', OLD, number)
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('HDEL', STATE, 'next', 'next_judge', 'started', 'total')
redis.call('HINCRBY', STATE, 'epoch', 1)
return 'cancelled'
