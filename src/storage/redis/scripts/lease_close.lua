-- Lets no session of this partition come under leases that are ending. KEYS: meta, attached leases, closed leases, sessions held by slot.
-- ARGV: birth, a random number, the leases.
-- Gives for each lease how many sessions are under it here.
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
    -- Below zero once somebody has meddled with the counts.
    held[i - 2] = slot and math.max(0, tonumber(call('HGET', KEYS[4], slot) or 1)) or 0
end
return held
