-- Notes that sessions of another partition may come under a lease. KEYS: meta, leases. ARGV: registry id, lease, partition.
-- Gives 0 when the lease is gone.
local lease = redis.call('HGET', KEYS[2], ARGV[2])
if not lease then
    return 0
end
local ttl, partitions, owner = string.match(lease, '^(%d+) ([%d,]+) (.*)$')
if not string.find(',' .. partitions .. ',', ',' .. ARGV[3] .. ',', 1, true) then
    redis.call('HSET', KEYS[2], ARGV[2], ttl .. ' ' .. partitions .. ',' .. ARGV[3] .. ' ' .. owner)
end
return 1
