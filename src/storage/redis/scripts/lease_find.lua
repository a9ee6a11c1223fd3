-- Finds the buckets that may have sessions under closed leases.
-- KEYS: meta, closed leases, sessions held by slot, for each lease its set of buckets. ARGV: birth, the leases.
-- Returns for each lease its slot ('' if it is not closed here), how many sessions are under it, and its set of buckets
-- as numbers or bits: see apply.lua.
local found = {}
for i, slot in ipairs(call('HMGET', KEYS[2], unpack(ARGV, 2))) do
    local set = ''
    if slot then
        local is_bits = call('TYPE', KEYS[3 + i]).ok == 'string'
        set = is_bits and call('GET', KEYS[3 + i]) or call('SMEMBERS', KEYS[3 + i])
    end
    found[#found + 1] = slot or ''
    -- A negative count shows that somebody has meddled with the counts. Then there may be sessions.
    found[#found + 1] = slot and math.abs(tonumber(call('HGET', KEYS[3], slot) or 0)) or 0
    found[#found + 1] = set
end
return found
