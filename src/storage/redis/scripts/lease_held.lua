-- Returns the number of sessions under each lease in this partition.
-- KEYS: meta, attached leases, closed leases, sessions held by slot. ARGV: birth, the leases.
local slots, closed = call('HMGET', KEYS[2], unpack(ARGV, 2)), call('HMGET', KEYS[3], unpack(ARGV, 2))
for i, slot in ipairs(slots) do
    slots[i] = slot and string.match(slot, '%d+') or closed[i] or ''
end
local held = call('HMGET', KEYS[4], unpack(slots))
for i, count in ipairs(held) do
    -- The count is negative only if somebody else has written to the counts.
    held[i] = math.max(0, tonumber(count or 0))
end
return held
