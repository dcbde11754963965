-- Keys of one buffer in one generation. Every script gets all of them, in this order; this file is put before each
-- script.
--
-- A member is known by `key` (8 bytes, hash of its id) and, in sorted sets, by `m` = tie (4 bytes, hash of the prompt) .. key,
-- so that members of equal score are in a fixed order.
--
--  1 rank        zset  m -> rank key
--  2 category    zset  hash of the category (8) .. rank key as sortable bytes (8) .. m -> 0: weakest of a category first
--  3 age         zset  m -> admitted at (ms)
--  4 fresh       zset  m -> admitted at (ms); no answers, never old enough for a call of `claim`
--  5 open        zset  m -> rank key; no answers, may be claimed
--  6 claims      zset  m -> until when (ms) somebody is answering it. A member in none of 4, 5, 6 is answered
--  7 trail       hash  key -> what leaves with the member (see `parse`)
--  8 body        hash  key -> JSON of the ScoredPrompt
--  9 answers     hash  key -> JSON of the candidates
-- 10 alike       hash  key -> count of near-duplicates, when over 0
-- 11 bands       hash  last 2 bytes of a band -> entries of 10 bytes: its first 2 bytes .. key of a member that has it
-- 12 meta        hash  judge, admitted_total, evicted_total, bin:0 … bin:15
-- 13 categories  hash  category -> members
-- 14 outbox      hash  judge .. ':' .. id -> msgpack of an eviction that nobody has published yet; of all generations
-- 15 positions   hash  partition of prompts.scored -> last offset applied
-- 16 state       hash  epoch, active, judge, next, next_judge, started (ms), total, last: see generations.py; of all buffers
-- 17 todo        zset  m -> rank key: members of the active generation that the next one's judge has not rated yet
-- 18-32          the same as 1-15 of the other generation, where there are two: the active's for the next, and vice versa
--
-- ARGV ends with the role of this generation ('active' or 'next') and the epoch in which the caller looked it up. If that
-- is over, a script returns {'moved'} and changes nothing. ARGS is what comes before.

local RANK, CATEGORY, AGE, FRESH, OPEN, CLAIMS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TRAIL, BODY, ANSWERS, ALIKE, BANDS = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local META, CATEGORIES, OUTBOX, POSITIONS = KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local STATE, TODO = KEYS[16], KEYS[17]
local PEER = #KEYS > 17 and {
  rank = KEYS[18], age = KEYS[20], fresh = KEYS[21], open = KEYS[22], claims = KEYS[23], trail = KEYS[24],
  answers = KEYS[26], alike = KEYS[27],
}

local ARGS, ROLE = {}, ARGV[#ARGV - 1]
for i = 1, #ARGV - 2 do ARGS[i] = ARGV[i] end
if (redis.call('HGET', STATE, 'epoch') or '0') ~= ARGV[#ARGV] then return { 'moved' } end

local byte, sub, find, format = string.byte, string.sub, string.find, string.format

-- redis.call(command, key, items…) in pieces: Lua's stack holds 8,000 values.
local function bulk(command, key, items)
  for i = 1, #items, 2000 do
    redis.call(command, key, unpack(items, i, math.min(i + 1999, #items)))
  end
end

-- Flat list of body, answers, near-duplicates, rank key, admitted at for each m (body is false for one that left).
local function read(ms)
  local rows = {}
  for i = 1, #ms, 1000 do
    local last = math.min(i + 999, #ms)
    local keys = {}
    for j = i, last do keys[#keys + 1] = sub(ms[j], 5) end
    local body, answers = redis.call('HMGET', BODY, unpack(keys)), redis.call('HMGET', ANSWERS, unpack(keys))
    local alike = redis.call('HMGET', ALIKE, unpack(keys))
    local rank, age = redis.call('ZMSCORE', RANK, unpack(ms, i, last)), redis.call('ZMSCORE', AGE, unpack(ms, i, last))
    for j = 1, #keys do
      local n = #rows
      rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4], rows[n + 5] = body[j], answers[j], alike[j], rank[j], age[j]
    end
  end
  return rows
end
