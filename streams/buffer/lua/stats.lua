-- State at one moment. Keys: keys.lua. (Not a transaction of plain commands: a full server refuses to queue those.)
-- Returns size, members without answers, meta and categories as flat lists, admitted at of the oldest and the newest
-- ({} when empty, else {m, time}), rows of the last and the first by rank.

local waiting = redis.call('ZCARD', FRESH) + redis.call('ZCARD', OPEN) + redis.call('ZCARD', CLAIMS)
return {
  redis.call('ZCARD', RANK),
  waiting,
  redis.call('HGETALL', META),
  redis.call('HGETALL', CATEGORIES),
  redis.call('ZRANGE', AGE, 0, 0, 'WITHSCORES'),
  redis.call('ZRANGE', AGE, -1, -1, 'WITHSCORES'),
  read(redis.call('ZRANGE', RANK, 0, 0)),
  read(redis.call('ZRANGE', RANK, -1, -1)),
}
