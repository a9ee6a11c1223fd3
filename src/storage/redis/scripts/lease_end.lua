-- Used by scripts whose KEYS are meta, deadlines, leases, ended leases, claims: leases as they end.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Ends a lease, for the caller to sweep. `reason` is the letter of the events. Gives what is known of it, or nil.
local function end_lease(lease, reason, claim)
    local known = redis.call('HGET', KEYS[3], lease)
    redis.call('ZREM', KEYS[2], lease)
    if not known then
        return nil
    end
    redis.call('HDEL', KEYS[3], lease)
    known = reason .. string.sub(known, string.find(known, ' ', 1, true), -1)
    redis.call('HSET', KEYS[4], lease, known)
    redis.call('ZADD', KEYS[5], now + claim, lease)
    return known
end
