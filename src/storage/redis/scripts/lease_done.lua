-- Forgets an ended lease that was swept. KEYS: meta, ended leases, claims. ARGV: registry id, lease, what was known of it.
-- When it is known to be in more partitions by now, it is left to be swept again.
local known = redis.call('HGET', KEYS[2], ARGV[2])
if not known or known == ARGV[3] then
    redis.call('ZREM', KEYS[3], ARGV[2])
    return redis.call('HDEL', KEYS[2], ARGV[2])
end
return redis.call('ZADD', KEYS[3], 'XX', 0, ARGV[2])
