-- Grants a lease. All leases are kept in the first partition, and attached there from the start.
-- KEYS: meta, leases, deadlines, ended leases, attached leases, slots, sessions held by slot, ids.
-- ARGV: birth, until when the script is good, lease, ttl in ms, owner, the limit of leases.
-- Returns 1, or 0 if the limit is reached. Error: TAKEN if there is a lease of that id.
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
-- Checks the keys' types before anything is written.
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
