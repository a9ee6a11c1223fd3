-- Attaches a lease that is alive according to the first partition.
-- KEYS: meta, attached leases, slots, sessions held by slot, closed leases.
-- ARGV: birth, until when the script is good, lease, the number of the newest closing here before the first partition
-- was asked.
-- Returns 0, and does nothing, if leases were closed since: this one may be among them. Error: UNFIT if a key was lost,
-- because the lease may have had a slot.
local problem = late(ARGV[2])
if problem then
    return problem
end
local lease = ARGV[3]
if call('HEXISTS', KEYS[2], lease) == 1 then
    return 1
end
if call('HGET', meta, 'closing') ~= ARGV[4] then
    return 0
end
local slots = call('HLEN', KEYS[3])
if slots ~= tonumber(call('HGET', meta, 'leases')) or slots ~= call('HLEN', KEYS[4])
    or slots ~= call('HLEN', KEYS[2]) + call('HLEN', KEYS[5]) then
    return redis.error_reply('UNFIT a key of the partition was lost')
end
store_clock()
local slot = call('HGET', KEYS[5], lease)
if slot then
    -- Its end was taken back.
    call('HDEL', KEYS[5], lease)
    call('HSET', KEYS[2], lease, slot)
else
    adopt(lease, KEYS[2], KEYS[3], KEYS[4])
end
return 1
