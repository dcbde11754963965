-- The hardest members without answers, claimed for a while. Keys: keys.lua (rank, age, fresh, open, claims, bodies).
-- ARGS: limit, only those admitted before (ms; '' for all), now (ms), claim until (ms).
-- Returns rows as `members.lua` does; or 0 when it has moved MOVES members to `open` and wants to be called again.

-- Each member passes from fresh to open once; in pieces, so that other clients get their turn.
local MOVES = 2000
local limit, before, now, till = tonumber(ARGS[1]), ARGS[2], tonumber(ARGS[3]), tonumber(ARGS[4])

local function move(from, max)
  local ms = redis.call('ZRANGEBYSCORE', from, '-inf', max, 'LIMIT', 0, MOVES)
  if #ms == 0 then return 0 end
  local ranks, items = redis.call('ZMSCORE', RANK, unpack(ms)), {}
  for i, m in ipairs(ms) do
    items[2 * i - 1], items[2 * i] = ranks[i], m
  end
  bulk('ZADD', OPEN, items)
  bulk('ZREM', from, ms)
  return #ms
end

if move(CLAIMS, format('%.0f', now)) == MOVES then return 0 end
if move(FRESH, before == '' and '+inf' or '(' .. before) == MOVES then return 0 end

local found, start = {}, 0
local newest = before == '' and math.huge or tonumber(before)
while #found < limit do
  local ms = redis.call('ZREVRANGE', OPEN, start, start + 199)
  if #ms == 0 then break end
  local ages = redis.call('ZMSCORE', AGE, unpack(ms))
  for i, m in ipairs(ms) do
    if #found < limit and tonumber(ages[i]) < newest then found[#found + 1] = m end
  end
  start = start + 200
end
if #found > 0 then
  local items = {}
  for i, m in ipairs(found) do
    items[2 * i - 1], items[2 * i] = till, m
  end
  bulk('ZREM', OPEN, found)
  bulk('ZADD', CLAIMS, items)
end
return cmsgpack.pack(read(found))
