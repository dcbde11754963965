-- A next generation for another judge. See streams/buffer/generations.py.
--
-- KEYS  1 state, 2 retired (zset: judge -> when, ms), 3 old (set: numbers whose keys may go), todo of 4 main and 5 eval;
--       of the active generation: rank of 6 main and 7 eval, meta of 8 main and 9 eval, 10 positions of main;
--       of the next one: meta of 11 main and 12 eval, 13 positions of main
-- ARGV  epoch as the caller knows it, judge, number of the next generation, now (ms), '1' if a person wants it
-- Returns 'begun', or why nothing changed: 'moved', 'empty', 'same', 'running', 'retired'

local STATE, RETIRED, OLD = KEYS[1], KEYS[2], KEYS[3]
local judge, number, now, forced = ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'

if (redis.call('HGET', STATE, 'epoch') or '0') ~= ARGV[1] then return 'moved' end
local have = redis.call('HGET', STATE, 'judge')
local before, before_judge = redis.call('HGET', STATE, 'next'), redis.call('HGET', STATE, 'next_judge')
if not have then return 'empty' end
if before_judge == judge then return 'running' end
if not forced then
  if have == judge then return 'same' end
  if redis.call('ZSCORE', RETIRED, judge) then return 'retired' end
end

if before then
  redis.call('SADD', OLD, before)
  if before_judge ~= have then redis.call('ZADD', RETIRED, now, before_judge) end
end
redis.call('ZREM', RETIRED, judge)
local total = redis.call('ZUNIONSTORE', KEYS[4], 1, KEYS[6]) + redis.call('ZUNIONSTORE', KEYS[5], 1, KEYS[7])
for i = 0, 1 do
  for _, field in ipairs({ 'admitted_total', 'evicted_total' }) do
    local value = redis.call('HGET', KEYS[8 + i], field)
    if value then redis.call('HSET', KEYS[11 + i], field, value) end
  end
end
local positions = redis.call('HGETALL', KEYS[10])
for i = 1, #positions, 2 do redis.call('HSET', KEYS[13], positions[i], positions[i + 1]) end
redis.call('HSET', STATE, 'next', number, 'next_judge', judge, 'started', now, 'total', total, 'last', number)
redis.call('HINCRBY', STATE, 'epoch', 1)
return 'begun'
