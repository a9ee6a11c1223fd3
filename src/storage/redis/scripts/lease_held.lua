-- Returns how many sessions are under leases in this partition.
-- KEYS: meta, attached leases, closed leases, sessions held by slot. ARGV: birth, the leases.
local held, closed = {}, call('HMGET', KEYS[3], unpack(ARGV, 2))
for i, slot in ipairs(call('HMGET', KEYS[2], unpack(ARGV, 2))) do
    slot = slot and string.match(slot, '%d+') or closed[i]
    -- The count is negative if somebody has meddled with the counts.
    held[i] = slot and math.max(0, tonumber(call('HGET', KEYS[4], slot) or 0)) or 0
end
return held
