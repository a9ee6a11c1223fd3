-- Lets a lease live for its whole ttl from now on. KEYS: meta, leases, deadlines, ended leases. ARGV: birth, until when the script is
-- good, lease.
-- Gives the ttl in ms and '', 0 and what is known of the lease when it is ending, -1 and '' when it is gone.
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
call('HDEL', meta, '')
call('ZADD', KEYS[3], text(lease_now + 1 + ttl), ARGV[3])
return {ttl, ''}
