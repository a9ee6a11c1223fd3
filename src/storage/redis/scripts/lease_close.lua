-- Lets no session of this partition come under an ended lease any more. KEYS: meta, attached leases, closed leases, the lease's
-- set of buckets. ARGV: registry id, lease.
-- Gives its slot and its set of buckets, or nil when no session is under it here.
local slot = redis.call('HGET', KEYS[3], ARGV[2])
if not slot then
    -- Also when it is not known: it must not be attached late.
    redis.call('HINCRBY', KEYS[1], 'ends', 1)
    slot = redis.call('HGET', KEYS[2], ARGV[2])
    if not slot then
        return false
    end
    redis.call('HDEL', KEYS[2], ARGV[2])
    redis.call('HSET', KEYS[3], ARGV[2], slot)
end
return {slot, redis.call('GET', KEYS[4]) or ''}
