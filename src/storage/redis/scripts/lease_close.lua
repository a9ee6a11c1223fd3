-- Closes leases that are ending: no session of this partition can come under them any more.
-- KEYS: meta, attached leases, closed leases, sessions held by slot. ARGV: birth, a random number, the leases.
-- Returns how many sessions are under each lease here.
call('HSET', meta, 'closing', ARGV[2])
local held = {}
for i = 3, #ARGV do
    local slot = call('HGET', KEYS[3], ARGV[i])
    if not slot then
        slot = call('HGET', KEYS[2], ARGV[i])
        if slot then
            call('HSET', KEYS[3], ARGV[i], slot)
            call('HDEL', KEYS[2], ARGV[i])
        end
    end
    -- The count is negative if somebody has meddled with the counts.
    held[i - 2] = slot and math.max(0, tonumber(call('HGET', KEYS[4], slot) or 1)) or 0
end
return held
