-- Grants a lease. The first partition has the records of all leases. A new lease is also attached there.
-- KEYS: meta, leases, deadlines, ended leases, attached leases, slots, sessions held by slot, ids.
-- ARGV: birth, the script's deadline, lease, ttl in ms, owner, the maximum number of leases.
-- Returns 1, or 0 if the limit is reached. Error: TAKEN if the lease id is in use.
local problem = late(ARGV[2])
if problem then
    return problem
end
if call('HLEN', KEYS[2]) + call('HLEN', KEYS[4]) >= tonumber(ARGV[6]) then
    return 0
end
if call('HEXISTS', KEYS[2], ARGV[3]) + call('HEXISTS', KEYS[4], ARGV[3]) + call('HEXISTS', KEYS[5], ARGV[3]) > 0 then
    return redis.error_reply('TAKEN there is a lease of that id')
end
-- Fails before the first write if a key has the wrong type.
call('HLEN', KEYS[6])
call('HLEN', KEYS[7])
call('ZCARD', KEYS[8])
store_clock()
local record = ARGV[4] .. ' ' .. ARGV[5]
set_deadline(ARGV[3], record)
list_lease(KEYS[8], ARGV[3])
call('HSET', KEYS[2], ARGV[3], record)
adopt(ARGV[3], '', KEYS[5], KEYS[6], KEYS[7])
call('HINCRBY', meta, 'live', 1)
return 1
