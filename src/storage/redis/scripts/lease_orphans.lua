-- Ends leases that a partition has, but that are not alive in the first partition.
-- KEYS: meta, leases, deadlines, ended leases, claims. ARGV: birth, a random number, '1' if sessions can come under the
-- leases in that partition, the leases that are attached or closed there.
-- A lease that is ending or has ended gets a mark with a new number, so that it is closed and swept again in all
-- partitions, by the replica that claims it. A lingering lease is closed again if sessions can come under it there.
for i = 4, #ARGV do
    local lease = ARGV[i]
    local known = call('HGET', KEYS[2], lease)
    if known and ARGV[3] == '1' and string.sub(known, 1, 1) == '~' then
        end_lease(lease, 'v', 0, ARGV[2], '0', string.match(known, '%d+'))
    elseif not known then
        local ended = call('HGET', KEYS[4], lease) or 'cx 0 0 0 0 '
        -- A mark that can be cancelled when its call fails remains so.
        local state, good, rest = string.match(ended, '^(.. )%d+ (%d+)(.*)$')
        good = string.sub(state, 1, 1) == 'm' and good or '0'
        call('HSET', KEYS[4], lease, 'm' .. string.sub(state, 2) .. ARGV[2] .. ' ' .. good .. rest)
        call('ZADD', KEYS[5], 'NX', 0, lease)
    end
end
return 1
