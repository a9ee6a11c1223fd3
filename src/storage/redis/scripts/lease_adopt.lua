-- Attaches a lease that, according to the first partition, is alive or lingers.
-- KEYS: meta, attached leases, slots, sessions held by slot, closed leases.
-- ARGV: birth, the script's deadline, lease, the number of the latest closing here before the first partition was
-- asked, '~' if the lease lingers or ''.
-- Returns 1 if the lease is attached. Returns 0, and does nothing, if leases were closed since, because this one may be
-- among them. Error: UNFIT if a key was lost, because the lease may already have had a slot.
local problem = late(ARGV[2])
if problem then
    return problem
end
local lease, lingers = ARGV[3], ARGV[5]
local slot = call('HGET', KEYS[2], lease)
if slot and (lingers ~= '' or string.sub(slot, 1, 1) ~= '~') then
    return 1
end
if call('HGET', meta, 'closing') ~= ARGV[4] then
    return 0
end
if not fits(KEYS[2], KEYS[5], KEYS[3], KEYS[4]) then
    return redis.error_reply('UNFIT a key of the partition was lost')
end
store_clock()
slot = slot or call('HGET', KEYS[5], lease)
if slot then
    -- The end of the lease, or its linger, was cancelled.
    call('HDEL', KEYS[5], lease)
    call('HSET', KEYS[2], lease, lingers .. string.match(slot, '%d+'))
else
    adopt(lease, lingers, KEYS[2], KEYS[3], KEYS[4])
end
return 1
