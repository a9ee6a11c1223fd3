-- Ends leases that a partition has and that are not alive in the first partition.
-- KEYS: meta, leases, ended leases, claims. ARGV: birth, a random number, the leases that are attached or closed there.
-- A lease that is ending or has ended gets a mark with another number, so that it is closed and swept in every
-- partition once more. Whoever has claimed it does that.
for i = 3, #ARGV do
    local lease = ARGV[i]
    if call('HEXISTS', KEYS[2], lease) == 0 then
        local ended = call('HGET', KEYS[3], lease)
        local known = ended and string.gsub(ended, '^.(.) %d+ %d+', 'm%1 ' .. ARGV[2] .. ' 0', 1)
        call('HSET', KEYS[3], lease, known or 'mx ' .. ARGV[2] .. ' 0 0 ')
        call('ZADD', KEYS[4], 'NX', 0, lease)
    end
end
return 1
