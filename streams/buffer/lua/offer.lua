-- One batch of offers, all or nothing (see streams/buffer/base.py for the rules). Keys: keys.lua.
--
-- ARGS[1]   msgpack: capacity, cap (of a category), needed (equal slots of two alike), now (ms), judge ('' in an empty
--           batch), positions {{partition, first, last}…}, started (ms; of the rescoring that is under way, else 0)
-- ARGS[2]   for the next generation: m of every offer, one after the other
-- ARGS[3…]  for each offer: trail, head (rank key as double, partition as int32, offset as int64, key), body;
--           only the head for one that the caller believes to be below the threshold, three times '' for one that was
--           refused before
-- returns   {'moved'}, {'judge', have}, {'gap', partition, applied, first} or {'whole'} (an offer with only its head is
--           not below the threshold: give all of them): nothing was applied
--           {'ok', {outcome, detail, threshold, value}…, {id, rank key, threshold, detail, by}…}: flat lists, '' for none;
--           value: equal slots of a near-duplicate, members of a full category; by: who was admitted instead
--
-- While a rescoring is under way, who is admitted to the active generation is entered in `todo`, unless it is a member of
-- the next one; who is offered to the next one is taken off it, whatever became of the offer. A member that was one in the active generation keeps its answers,
-- its near-duplicates and since when it is there.

-- Candidates with most bands in common whose slots are compared, for each offer: bounds the time of boilerplate.
local MAX_COMPARED = 64
-- Members that one admission may push out beyond its own place, after capacity or cap were set lower.
local MAX_SHRINK = 16

local head = cmsgpack.unpack(ARGS[1])

-- Of this buffer, and of all buffers of the generation: one judge.
local have = redis.call('HGET', META, 'judge')
local rated_by = redis.call('HGET', STATE, ROLE == 'next' and 'next_judge' or 'judge') or have
if head.judge ~= '' then
  if have and have ~= head.judge then return { 'judge', have } end
  if rated_by and rated_by ~= head.judge then return { 'judge', rated_by } end
end

local applied_before, applied = {}, {}
local function position(partition)
  if not applied_before[partition] then
    applied_before[partition] = tonumber(redis.call('HGET', POSITIONS, format('%d', partition)) or -1)
  end
  return applied_before[partition]
end
for _, p in ipairs(head.positions) do
  local partition, first, last = p[1], p[2], p[3]
  local before = applied[partition] or position(partition)
  if first > before + 1 then return { 'gap', partition, before, first } end
  applied[partition] = math.max(before, last)
end

-- Byte by byte: `<` on Lua strings follows the server's locale.
local function less(a, b)
  for i = 1, #a do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then return x < y end
  end
  return false
end

local low -- the weakest member, while known
local function lowest()
  if not low then
    local row = redis.call('ZRANGE', RANK, 0, 0, 'WITHSCORES')
    low = { m = row[1], text = row[2], score = tonumber(row[2]) }
  end
  return low
end

-- What is below the threshold when the batch begins is refused, whatever the batch does: so its caller may leave out what
-- it would be compared by.
local first_low = size >= head.capacity and lowest() or nil
local function below_first(rank, m)
  return first_low and (rank < first_low.score or (rank == first_low.score and m and less(m, first_low.m)))
end
local function is_head_only(i) return ARGS[i] == '' and ARGS[i + 1] ~= '' end
for i = 3, #ARGS, 3 do
  if is_head_only(i) and not below_first(struct.unpack('>d', ARGS[i + 1])) then return { 'whole' } end
end

local alike = {} -- key -> count of near-duplicates, where it changed or was asked for
local alike_changed = {}
local function alike_of(key)
  if not alike[key] then
    alike[key] = added[key] and 0 or tonumber(redis.call('HGET', ALIKE, key) or 0)
  end
  return alike[key]
end
local function set_alike(key, n)
  alike[key] = n
  alike_changed[key] = true
end

-- Members alike to t: {key, t, order .. tie .. key, equal slots}, hardest first.
local function twins_of(t)
  local hits, candidates = {}, {}
  load_buckets(t.fields)
  for i, field in ipairs(t.fields) do
    local entries, mark = buckets[field], t.marks[i]
    local at = find(entries, mark, 1, true)
    while at do
      if (at - 1) % 10 == 0 then
        local key = sub(entries, at + 2, at + 9)
        if not hits[key] then candidates[#candidates + 1] = key end
        hits[key] = (hits[key] or 0) + 1
        at = find(entries, mark, at + 10, true)
      else
        at = find(entries, mark, at + 1, true)
      end
    end
  end
  if #candidates == 0 then return candidates end
  if #candidates > MAX_COMPARED then
    table.sort(candidates, function(a, b) return hits[a] > hits[b] end)
  end
  local twins, mine = {}, { byte(t.slots, 1, -1) }
  for i = 1, math.min(#candidates, MAX_COMPARED) do
    local key = candidates[i]
    local other = parse(trail_of(key))
    local theirs, equal = { byte(other.slots, 1, -1) }, 0
    for j = 1, #mine do
      if mine[j] == theirs[j] then equal = equal + 1 end
    end
    if equal >= head.needed then
      twins[#twins + 1] = { key = key, t = other, order = other.order .. other.tie .. key, equal = equal }
    end
  end
  table.sort(twins, function(a, b) return less(b.order, a.order) end)
  return twins
end

-- Since when (ms) m is a member of the active generation, for a newcomer of the next one; false if it is none.
local ages_before = {}
local function age_before(m)
  if ROLE ~= 'next' or not PEER then return false end
  if ages_before[m] == nil then ages_before[m] = redis.call('ZSCORE', PEER.age, m) end
  return ages_before[m]
end

local outcomes, evictions, evicted_ids = {}, {}, {}
local admitted_total, evicted_total = 0, 0
local newcomer -- id of the offer that is decided about

local function evict(key, t, threshold, detail, known_rank)
  local rank = known_rank or redis.call('ZSCORE', RANK, t.tie .. key)
  drop(key, t)
  low = nil
  alike[key], alike_changed[key] = nil, nil
  evicted_total = evicted_total + 1
  local n = #evictions
  evictions[n + 1], evictions[n + 2], evictions[n + 3], evictions[n + 4] = t.id, rank, threshold, detail
  evictions[n + 5] = newcomer
  evicted_ids[#evicted_ids + 1] = head.judge .. ':' .. t.id
  evicted_ids[#evicted_ids + 1] = cmsgpack.pack({
    id = t.id,
    judge = head.judge,
    rank_key = tonumber(rank),
    threshold = tonumber(threshold),
    detail = detail ~= '' and detail or nil,
    by = newcomer,
    ts = head.now,
  })
end

-- Outcome, detail, whether it is new and the value that failed, of one offer that is no member yet.
local function decide(key, t, rank, replay, threshold)
  local m = t.tie .. key
  local order = t.order .. m
  if below_first(rank, m) then return 'below_threshold', '' end
  if threshold ~= '' then
    local weakest = lowest()
    if rank < weakest.score or (rank == weakest.score and less(m, weakest.m)) then return 'below_threshold', '' end
  end

  local twins = #t.fields > 0 and twins_of(t) or {}
  if #twins > 0 and less(order, twins[1].order) then
    if not replay then set_alike(twins[1].key, alike_of(twins[1].key) + 1) end
    return 'near_duplicate', twins[1].t.id, false, twins[1].equal
  end

  local leaving, twins_here, inherited = {}, 0, 0
  for _, twin in ipairs(twins) do
    leaving[twin.key] = true
    inherited = inherited + alike_of(twin.key) + 1
    if twin.t.category == t.category then twins_here = twins_here + 1 end
  end
  local crowded = {}
  local over = count_of(t.category) - twins_here - head.cap + 1
  if over > 0 then
    -- The weakest of the category; twins among them leave anyway.
    local wanted = math.min(over, MAX_SHRINK)
    local rows = redis.call(
      'ZRANGEBYLEX', CATEGORY, '[' .. t.catkey, '[' .. t.catkey .. string.rep('\255', 21), 'LIMIT', 0, wanted + twins_here
    )
    for _, row in ipairs(rows) do
      local other = sub(row, 21)
      if not leaving[other] and #crowded < wanted then
        if less(order, sub(row, 9)) then
          return 'category_full', t.category, false, count_of(t.category)
        end
        crowded[#crowded + 1] = other
      end
    end
  end

  for _, twin in ipairs(twins) do evict(twin.key, twin.t, threshold, t.id) end
  for _, other in ipairs(crowded) do evict(other, parse(trail_of(other)), threshold, t.category) end
  local shrunk = 0
  while size >= head.capacity and shrunk < MAX_SHRINK do
    local weakest = lowest()
    local other = sub(weakest.m, 5)
    evict(other, parse(trail_of(other)), threshold, '', weakest.text)
    shrunk = shrunk + 1
  end

  redis.call('ZADD', RANK, format('%.17g', rank), m)
  redis.call('ZADD', CATEGORY, 0, t.catkey .. order)
  count(t, 1)
  enter_bands(t, key)
  low = nil
  local since = age_before(m)
  if since then inherited = inherited + tonumber(redis.call('HGET', PEER.alike, key) or 0) end
  if inherited > 0 then set_alike(key, inherited) end
  -- One that was a member before the rescoring began is not new.
  if not since or tonumber(since) >= head.started then admitted_total = admitted_total + 1 end
  return 'admitted', '', true
end

for i = 3, #ARGS, 3 do
  local trail, body = ARGS[i], ARGS[i + 2]
  local threshold = size >= head.capacity and lowest().text or ''
  local outcome, detail, value = 'refused', '', ''
  if trail ~= '' or ARGS[i + 1] ~= '' then
    local rank, partition, offset, key = struct.unpack('>di4i8c8', ARGS[i + 1])
    if trail_of(key) then
      outcome = 'admitted'
    elseif trail == '' then
      outcome = 'below_threshold'
      if threshold == '' then threshold = first_low.text end
    else
      local replay = partition >= 0 and offset <= position(partition)
      local new
      local t = parse(trail)
      newcomer = t.id
      outcome, detail, new, value = decide(key, t, rank, replay, threshold)
      if outcome == 'below_threshold' and threshold == '' then threshold = first_low.text end
      if new then
        trails[key] = trail
        added[key] = { t.tie .. key, body, format('%.17g', rank) }
      end
    end
  end
  local n = #outcomes
  outcomes[n + 1], outcomes[n + 2], outcomes[n + 3], outcomes[n + 4] = outcome, detail, threshold, value or ''
end

-- What left comes first: an id may have left and come back within the batch.
flush()
local ages, fresh, new_trails, bodies, new_alike, answers, todo = {}, {}, {}, {}, {}, {}, {}
for key, row in pairs(added) do
  local n, m = #ages, row[1]
  local since = age_before(m)
  local answered = since and redis.call('HGET', PEER.answers, key)
  ages[n + 1], ages[n + 2] = since or head.now, m
  if answered then
    answers[#answers + 1] = key
    answers[#answers + 1] = answered
  else
    fresh[#fresh + 1] = since or head.now
    fresh[#fresh + 1] = m
  end
  new_trails[n + 1], new_trails[n + 2] = key, trails[key]
  bodies[n + 1], bodies[n + 2] = key, row[2]
  if ROLE == 'active' and PEER and not redis.call('ZSCORE', PEER.rank, m) then
    todo[#todo + 1] = row[3]
    todo[#todo + 1] = m
  end
end
for key in pairs(alike_changed) do
  new_alike[#new_alike + 1] = key
  new_alike[#new_alike + 1] = alike[key]
end
bulk('ZADD', AGE, ages)
bulk('ZADD', FRESH, fresh)
bulk('HSET', ANSWERS, answers)
bulk('HSET', TRAIL, new_trails)
bulk('HSET', BODY, bodies)
bulk('HSET', ALIKE, new_alike)
bulk('HSET', OUTBOX, evicted_ids)
if ROLE == 'next' then
  local seen = {}
  for at = 1, #ARGS[2], 12 do seen[#seen + 1] = sub(ARGS[2], at, at + 11) end
  bulk('ZREM', TODO, seen)
else
  bulk('ZADD', TODO, todo)
end
if not have and head.judge ~= '' then redis.call('HSET', META, 'judge', head.judge) end
if not rated_by and head.judge ~= '' then redis.call('HSET', STATE, 'judge', head.judge) end
if admitted_total > 0 then redis.call('HINCRBY', META, 'admitted_total', admitted_total) end
if evicted_total > 0 then redis.call('HINCRBY', META, 'evicted_total', evicted_total) end
for partition, last in pairs(applied) do
  redis.call('HSET', POSITIONS, format('%d', partition), format('%.0f', last))
end
return { 'ok', outcomes, evictions }
