-- Ends leases that a partition has and that are not alive in the first partition.
-- KEYS: meta, leases, deadlines, ended leases, claims. ARGV: birth, a random number, '1' if sessions of that partition
-- may come under the leases, the leases that are attached or closed there.
-- A lease that is ending or has ended gets a mark with another number, so that it is closed and swept in every
-- partition once more. Whoever has claimed it does that. One that lingers is closed once more if it has to be.
for i = 4, #ARGV do
    local lease = ARGV[i]
    local known = call('HGET', KEYS[2], lease)
    if known and ARGV[3] == '1' and string.sub(known, 1, 1) == '~' then
        end_lease(lease, 'v', 0, ARGV[2], '0', string.match(known, '%d+'))
    elseif not known then
        local ended = call('HGET', KEYS[4], lease) or 'cx 0 0 0 0 '
        -- A mark that can be taken back if a call fails stays so.
        local state, good, rest = string.match(ended, '^(.. )%d+ (%d+)(.*)$')
        good = string.sub(state, 1, 1) == 'm' and good or '0'
        call('HSET', KEYS[4], lease, 'm' .. string.sub(state, 2) .. ARGV[2] .. ' ' .. good .. rest)
        call('ZADD', KEYS[5], 'NX', 0, lease)
    end
end
return 1
