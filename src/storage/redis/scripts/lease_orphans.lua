-- Ends in a partition what the first partition does not know to live. KEYS: meta, leases, ended leases, claims.
-- ARGV: birth, a random number, how many of the leases are attached there, the leases: those that are attached and then those that are closed.
-- A lease that has ended, or is ending, and is attached there is closed once more, in every partition: its mark gets a number of its own.
local attached = tonumber(ARGV[3])
for i = 4, #ARGV do
    local lease = ARGV[i]
    if call('HEXISTS', KEYS[2], lease) == 0 then
        local ended = call('HGET', KEYS[3], lease)
        if not ended or i - 3 <= attached then
            local known = ended and string.gsub(ended, '^.(.) %d+ %d+', 'm%1 ' .. ARGV[2] .. ' 0', 1)
            call('HSET', KEYS[3], lease, known or 'mx ' .. ARGV[2] .. ' 0 0 ')
            call('ZADD', KEYS[4], 0, lease)
        end
    end
end
return 1
