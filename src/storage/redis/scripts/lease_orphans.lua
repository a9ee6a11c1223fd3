-- Ends what a partition has and the first partition does not know to live. KEYS: meta, leases, ended leases, claims.
-- ARGV: birth, a random number, the leases that are attached or closed there.
-- A lease that has ended, or is ending, is closed and swept once more, in every partition: its mark gets another number. Who has claimed it does that.
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
