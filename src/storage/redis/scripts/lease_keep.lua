-- Gives a lease its whole ttl from now on.
-- KEYS: meta, leases, deadlines, ended leases. ARGV: birth, the script's deadline, lease.
-- Returns the ttl in ms and '', 0 and the lease's record if it is ending, -1 and '' if it is gone, -2 and '' if it
-- lingers.
local problem = late(ARGV[2])
if problem then
    return problem
end
local lease = call('HGET', KEYS[2], ARGV[3])
if not lease then
    local ended = call('HGET', KEYS[4], ARGV[3])
    return ended and string.sub(ended, 1, 1) == 'm' and {0, ended} or {-1, ''}
end
local ttl = tonumber(string.match(lease, '^%d+'))
if not ttl then
    return {-2, ''}
end
call('HDEL', meta, '')
set_deadline(ARGV[3], lease)
return {ttl, ''}
