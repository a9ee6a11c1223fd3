-- Marks leases as ending. KEYS: meta, leases, deadlines, ended leases, claims. A marked lease can no longer be attached
-- to a partition. It has ended, or lingers, after it is closed in all partitions, and only then is that reported.

-- `reason` is the letter of the destroy events of its sessions. The caller claims the lease for `claim` ms, to close
-- and sweep it. `number` is random and identifies this mark. `good` is the deadline for recording the end, for a call
-- that must not take effect after its failure. It is 0 if the end cannot be cancelled. `over` is the time when the
-- lease ends if it begins to linger, and 0 if it ends now.
-- Returns the lease's new record ('m' and the reason, `number`, `good`, `over`, and the previous record), or nil if the
-- lease is unknown.
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
