-- Read members at one moment. Keys: keys.lua.
-- ARGV: 'top' or 'lowest', first index, last index; or 'm', m…; or 'key', key.  Returns rows as `read` does.

local ms = {}
if ARGV[1] == 'top' then
  ms = redis.call('ZREVRANGE', RANK, ARGV[2], ARGV[3])
elseif ARGV[1] == 'lowest' then
  ms = redis.call('ZRANGE', RANK, ARGV[2], ARGV[3])
elseif ARGV[1] == 'm' then
  for i = 2, #ARGV do ms[i - 1] = ARGV[i] end
else
  local trail = redis.call('HGET', TRAIL, ARGV[2])
  if trail then ms = { sub(trail, 1, 4) .. ARGV[2] } end
end
return read(ms)
