-- Store the answers of a member. Keys: keys.lua (trail, answers, fresh, open, claims).
-- ARGS: key (8 bytes), JSON of the candidates.  Returns 1, or 0 when it is no member any more.
-- Where a rescoring is under way, the next generation's member gets them too.

local key, answers = ARGS[1], ARGS[2]

local function put(where)
  local trail = redis.call('HGET', where.trail, key)
  if not trail then return 0 end
  local m = sub(trail, 1, 4) .. key
  redis.call('HSET', where.answers, key, answers)
  redis.call('ZREM', where.fresh, m)
  redis.call('ZREM', where.open, m)
  redis.call('ZREM', where.claims, m)
  return 1
end

local found = put({ trail = TRAIL, answers = ANSWERS, fresh = FRESH, open = OPEN, claims = CLAIMS })
if PEER then found = math.max(found, put(PEER)) end
return found
