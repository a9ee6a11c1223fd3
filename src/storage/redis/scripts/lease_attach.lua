-- Returns the state of a lease. KEYS: meta, leases, ended leases. ARGV: birth, lease.
-- Returns 1 and '' if it is alive, 2 and '' if it lingers, 0 and the lease's record if it is ending or has ended, -1
-- and '' if it is unknown.
local known = call('HGET', KEYS[2], ARGV[2])
if known then
    return {string.sub(known, 1, 1) == '~' and 2 or 1, ''}
end
local ended = call('HGET', KEYS[3], ARGV[2])
return ended and {0, ended} or {-1, ''}
