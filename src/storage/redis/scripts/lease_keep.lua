-- Lets a lease live for its whole ttl from now on. KEYS: meta, deadlines, leases. ARGV: registry id, lease.
-- Gives the ttl in ms, or nil when it is gone.
local lease = redis.call('HGET', KEYS[3], ARGV[2])
if not lease then
    return false
end
local ttl = string.match(lease, '^%d+')
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ttl, ARGV[2])
return ttl
