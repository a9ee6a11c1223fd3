-- Marks leases as ending. KEYS: meta, leases, deadlines, ended leases, claims. A marked lease is not attached any more.
-- It has ended, or lingers, once it is closed in every partition, and only then is anybody told.

-- `reason` is the letter of its sessions' events. The caller claims the lease for `claim` ms, to close and sweep it.
-- `number` is random and tells this mark from others. `good` is until when the end may be recorded, for a call whose
-- failure must not take effect later. It is 0 if nobody can take the end back. `over` is when the lease ends if it is
-- to linger, and 0 if it ends now.
-- Returns the lease's record ('m' and the reason, the number, `good`, `over`, and its record until now), or nil if
-- it is unknown.
local function end_lease(lease, reason, claim, number, good, over)
    local known = call('HGET', KEYS[2], lease)
    if not known then
        call('ZREM', KEYS[3], lease)
        return nil
    end
    known = 'm' .. reason .. ' ' .. number .. ' ' .. good .. ' ' .. over .. ' ' .. known
    call('HSET', KEYS[4], lease, known)
    call('ZADD', KEYS[5], text(now + claim), lease)
    call('HDEL', KEYS[2], lease)
    call('ZREM', KEYS[3], lease)
    call('HINCRBY', meta, 'live', -1)
    return known
end
