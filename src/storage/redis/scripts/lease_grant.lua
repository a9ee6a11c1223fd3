-- Grants a lease. All leases are kept in the first partition, which they are attached to from the start.
-- KEYS: meta, attached leases, deadlines, leases, ended leases. ARGV: registry id, lease, ttl in ms, owner, most leases.
-- Gives 1, or 0 when there are as many as there may be; TAKEN when there is one of that id.
if redis.call('HLEN', KEYS[4]) + redis.call('HLEN', KEYS[5]) >= tonumber(ARGV[5]) then
    return 0
end
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 or redis.call('HEXISTS', KEYS[5], ARGV[2]) == 1 then
    return redis.error_reply('TAKEN there is a lease of that id')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3] .. ' 0 ' .. ARGV[4])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], redis.call('HINCRBY', KEYS[1], 'slots', 1))
return 1
