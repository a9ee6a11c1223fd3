-- Closes leases that are ending: no session of this partition can come under them any more.
-- KEYS: meta, attached leases, closed leases, sessions held by slot. ARGV: birth, a random number, the leases (if
-- none is named, only the number changes).
-- Returns how many sessions are under each lease here.
call('HSET', meta, 'closing', ARGV[2])
if #ARGV == 2 then
    return {}
end
local attached = call('HMGET', KEYS[2], unpack(ARGV, 3))
local held, leases, closed = {}, {}, {}
for i, slot in ipairs(call('HMGET', KEYS[3], unpack(ARGV, 3))) do
    if not slot and attached[i] then
        slot = attached[i]
        leases[#leases + 1] = ARGV[2 + i]
        closed[#closed + 1], closed[#closed + 2] = ARGV[2 + i], slot
    end
    -- The count is negative if somebody has meddled with the counts.
    held[i] = slot and math.max(0, tonumber(call('HGET', KEYS[4], slot) or 1)) or 0
end
if #leases > 0 then
    call('HSET', KEYS[3], unpack(closed))
    call('HDEL', KEYS[2], unpack(leases))
end
return held
