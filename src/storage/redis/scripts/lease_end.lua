-- Marks leases as ending. KEYS: meta, leases, deadlines, ended leases, claims.
-- From then on a lease is not attached. It has ended once it is closed in every partition: only then is anybody told.

-- `reason` is the letter of its sessions' events. The caller has the lease for `claim` ms, to close and sweep it. `number` is random and tells this
-- mark from others. `good` is until when the lease may be noted as ended, for a call whose failure must not take effect later; 0 for an end that nobody
-- can take back.
-- Gives what is known of it: 'm' and the reason, the number, `good`, its ttl and its owner; or nil.
local function end_lease(lease, reason, claim, number, good)
    local known = call('HGET', KEYS[2], lease)
    if not known then
        call('ZREM', KEYS[3], lease)
        return nil
    end
    known = 'm' .. reason .. ' ' .. number .. ' ' .. good .. ' ' .. known
    call('HSET', KEYS[4], lease, known)
    call('ZADD', KEYS[5], text(now + claim), lease)
    call('HDEL', KEYS[2], lease)
    call('ZREM', KEYS[3], lease)
    call('HINCRBY', meta, 'live', -1)
    return known
end
