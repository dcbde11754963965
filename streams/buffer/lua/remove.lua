-- Take members out by hand: no outcome, no counter. Keys: keys.lua.
-- ARGS: key (8 bytes) of each.  Returns how many were members.

local removed = 0
for _, key in ipairs(ARGS) do
  local trail = trail_of(key)
  if trail then
    drop(key, parse(trail))
    removed = removed + 1
  end
end
flush()
return removed
