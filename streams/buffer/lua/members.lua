-- Read members at one moment. Keys: keys.lua.
-- ARGS: 'top' or 'lowest', first index, last index; or 'm', each m after the other; or 'key', key.
-- Returns msgpack of rows as `read` makes them: one string is read ten times as fast as five for each member.

local ms = {}
if ARGS[1] == 'top' then
  ms = redis.call('ZREVRANGE', RANK, ARGS[2], ARGS[3])
elseif ARGS[1] == 'lowest' then
  ms = redis.call('ZRANGE', RANK, ARGS[2], ARGS[3])
elseif ARGS[1] == 'm' then
  for at = 1, #ARGS[2], 12 do ms[#ms + 1] = sub(ARGS[2], at, at + 11) end
else
  local trail = redis.call('HGET', TRAIL, ARGS[2])
  if trail then ms = { sub(trail, 1, 4) .. ARGS[2] } end
end
return cmsgpack.pack(read(ms))
