-- Forget everything of a buffer. Keys: keys.lua.  ARGS: 1 for the main buffer, whose judge is that of all.

redis.call('UNLINK', unpack(KEYS, 1, 15)) -- frees in the background, whatever the size
if ROLE == 'next' then
  if PEER then redis.call('ZUNIONSTORE', TODO, 1, PEER.rank) end
else
  redis.call('DEL', TODO)
  if ARGS[1] == '1' then redis.call('HDEL', STATE, 'judge') end
end
return 1
