-- Ends in a partition what the first partition does not know. KEYS: meta, leases, ended leases, claims. ARGV: registry id,
-- partition, the leases attached there.
for i = 3, #ARGV do
    local lease = ARGV[i]
    local live, ended = redis.call('HGET', KEYS[2], lease), redis.call('HGET', KEYS[3], lease)
    local known = live or ended or 'x 0 '
    local first, partitions, owner = string.match(known, '^(%w+) ([%d,]+) (.*)$')
    if not string.find(',' .. partitions .. ',', ',' .. ARGV[2] .. ',', 1, true) then
        partitions = partitions .. ',' .. ARGV[2]
    end
    redis.call('HSET', live and KEYS[2] or KEYS[3], lease, first .. ' ' .. partitions .. ' ' .. owner)
    if not live then
        -- Whoever sweeps it goes on, and finds what is new when it is done.
        redis.call('ZADD', KEYS[4], 'NX', 0, lease)
    end
end
return 1
