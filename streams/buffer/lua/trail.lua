-- Taking members out with everything that belongs to them; put before `offer` and `remove`.
-- Sorted sets that decide (rank, category) change at once, the rest is gathered and written by `flush`.

-- Entries of one band's bucket. Boilerplate that very many members share stops being entered: it would cost more time
-- than it finds twins (they share other bands too).
local MAX_ENTRIES = 1024

local trails = {}   -- key -> trail, false for what is no member
local buckets = {}  -- last 2 bytes of a band -> entries
local dirty = {}    -- buckets to write
local counts = {}   -- category -> members; deltas are in count_changes
local count_changes, bin_changes = {}, {}
local gone_ms, gone_keys = {}, {}
local added = {}    -- key -> {m, body, rank key}: admitted by this call
local size = redis.call('ZCARD', RANK)

-- Trail: tie 4, sortable rank key 8, hash of the category 8, bin of the histogram 1, slots 0 or 128, bands 4 each,
-- category and id with their lengths.
-- One call takes all bands apart, into tables that are made in their size: a loop grows them step by step.
local field_formats, mark_formats = {}, {}

local function parse(trail)
  local tie, order, catkey, bin, nslots, nbands, pos = struct.unpack('>c4c8c8BBB', trail)
  local t = { tie = tie, order = order, catkey = catkey, bin = bin, slots = sub(trail, pos, pos + nslots - 1) }
  pos = pos + nslots
  if not field_formats[nbands] then
    field_formats[nbands], mark_formats[nbands] = string.rep('xxc2', nbands), string.rep('c2xx', nbands)
  end
  t.fields = { struct.unpack(field_formats[nbands], trail, pos) }
  t.marks = { struct.unpack(mark_formats[nbands], trail, pos) }
  t.fields[nbands + 1], t.marks[nbands + 1] = nil, nil  -- where each call ended
  t.category, t.id = struct.unpack('>Hc0Hc0', trail, pos + 4 * nbands)
  return t
end

local function trail_of(key)
  local trail = trails[key]
  if trail == nil then
    trail = redis.call('HGET', TRAIL, key)
    trails[key] = trail
  end
  return trail
end

-- Have the buckets of these fields in `buckets`.
local function load_buckets(fields)
  local missing = fields
  for i = 1, #fields do
    if buckets[fields[i]] then  -- often of none
      missing = {}
      break
    end
  end
  if missing ~= fields then
    for i = 1, #fields do
      if not buckets[fields[i]] then missing[#missing + 1] = fields[i] end
    end
  end
  if #missing == 0 then return end
  local values = redis.call('HMGET', BANDS, unpack(missing))
  for i = 1, #missing do buckets[missing[i]] = values[i] or '' end
end

local function enter_bands(t, key)
  load_buckets(t.fields)
  for i, field in ipairs(t.fields) do
    local entries = buckets[field]
    if #entries < MAX_ENTRIES * 10 then
      buckets[field] = entries .. t.marks[i] .. key
      dirty[field] = true
    end
  end
end

local function leave_bands(t, key)
  load_buckets(t.fields)
  for i, field in ipairs(t.fields) do
    local entries, entry = buckets[field], t.marks[i] .. key
    local at = find(entries, entry, 1, true)
    while at and (at - 1) % 10 ~= 0 do at = find(entries, entry, at + 1, true) end
    if at then
      buckets[field] = sub(entries, 1, at - 1) .. sub(entries, at + 10)
      dirty[field] = true
    end
  end
end

local function count_of(category)
  local n = counts[category]
  if not n then
    n = tonumber(redis.call('HGET', CATEGORIES, category) or 0)
    counts[category] = n
  end
  return n
end

local function count(t, change)
  counts[t.category] = count_of(t.category) + change
  count_changes[t.category] = (count_changes[t.category] or 0) + change
  bin_changes[t.bin] = (bin_changes[t.bin] or 0) + change
  size = size + change
end

-- Take the member `key` with the parsed trail `t` out.
local function drop(key, t)
  local m = t.tie .. key
  redis.call('ZREM', RANK, m)
  redis.call('ZREM', CATEGORY, t.catkey .. t.order .. m)
  count(t, -1)
  leave_bands(t, key)
  trails[key] = false
  if added[key] then
    added[key] = nil
  else
    gone_ms[#gone_ms + 1] = m
    gone_keys[#gone_keys + 1] = key
  end
end

local function flush()
  for _, key in ipairs({ AGE, FRESH, OPEN, CLAIMS }) do bulk('ZREM', key, gone_ms) end
  if ROLE == 'active' then bulk('ZREM', TODO, gone_ms) end
  for _, key in ipairs({ TRAIL, BODY, ANSWERS, ALIKE }) do bulk('HDEL', key, gone_keys) end
  local set, del = {}, {}
  for field in pairs(dirty) do
    local entries = buckets[field]
    if entries == '' then
      del[#del + 1] = field
    else
      set[#set + 1] = field
      set[#set + 1] = entries
    end
  end
  bulk('HSET', BANDS, set)
  bulk('HDEL', BANDS, del)
  for category, change in pairs(count_changes) do
    if change ~= 0 and redis.call('HINCRBY', CATEGORIES, category, change) <= 0 then
      redis.call('HDEL', CATEGORIES, category)
    end
  end
  for bin, change in pairs(bin_changes) do
    if change ~= 0 then redis.call('HINCRBY', META, 'bin:' .. bin, change) end
  end
end
