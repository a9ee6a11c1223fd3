-- Forgets closed leases in their partition.
-- KEYS: meta, closed leases, slots, sessions held by slot, for each lease its set of buckets. ARGV: birth, '1' if every
-- bucket was searched, the leases.
-- Returns for each lease how many sessions are still counted under it. It is forgotten if there are none, or if every
-- bucket was searched.
local left = {}
for i = 3, #ARGV do
    local slot = call('HGET', KEYS[2], ARGV[i])
    local held = slot and tonumber(call('HGET', KEYS[4], slot) or 0) or 0
    if slot and (held == 0 or ARGV[2] == '1') then
        call('UNLINK', KEYS[2 + i])
        call('HDEL', KEYS[2], ARGV[i])
        call('HDEL', KEYS[3], slot)
        call('HDEL', KEYS[4], slot)
        call('HINCRBY', meta, 'leases', -1)
        held = 0
    end
    left[i - 2] = held
end
return left
