-- Deletes closed leases from their partition: those without sessions or, if all buckets were searched, all of them.
-- KEYS: meta, closed leases, slots, sessions held by slot, for each lease its set of buckets. ARGV: birth, '1' if all
-- buckets were searched, the leases.
-- Returns for each lease the number of sessions that are still counted under it, and 0 if it was deleted.
local left, leases, slots, sets = {}, {}, {}, {}
for i, slot in ipairs(call('HMGET', KEYS[2], unpack(ARGV, 3))) do
    left[i] = slot and tonumber(call('HGET', KEYS[4], slot) or 0) or 0
    if slot and (left[i] == 0 or ARGV[2] == '1') then
        left[i] = 0
        leases[#leases + 1], slots[#slots + 1], sets[#sets + 1] = ARGV[2 + i], slot, KEYS[4 + i]
    end
end
if #leases > 0 then
    call('UNLINK', unpack(sets))
    local forgotten = call('HDEL', KEYS[2], unpack(leases))
    call('HDEL', KEYS[3], unpack(slots))
    call('HDEL', KEYS[4], unpack(slots))
    call('HINCRBY', meta, 'leases', -forgotten)
end
return left
