-- One step of a scan over the members. Keys: keys.lua.
-- ARGS: cursor, members to look at. Returns the next cursor ('0' at the end), and 20 bytes for each member (some may come
-- twice): m, rank key as double.

local step = redis.call('ZSCAN', RANK, ARGS[1], 'COUNT', ARGS[2])
local found, rows = step[2], {}
for i = 1, #found, 2 do rows[#rows + 1] = struct.pack('>c12d', found[i], tonumber(found[i + 1])) end
return { step[1], table.concat(rows) }
