-- Ends in a partition what the first partition does not know. KEYS: meta, leases, ended leases, claims. ARGV: birth, how many of the leases are attached
-- there, the leases: those that are attached and then those that are closed.
local attached = tonumber(ARGV[2])
for i = 3, #ARGV do
    local lease = ARGV[i]
    if call('HEXISTS', KEYS[2], lease) == 0 then
        local ended = call('HGET', KEYS[3], lease)
        local is_open = i - 2 <= attached and ended and string.sub(ended, 1, 1) == 'c'
        if not ended or is_open then
            -- It is closed everywhere, and swept.
            call('HSET', KEYS[3], lease, ended and string.gsub(ended, '^c(.) %d+', 'm%1 0', 1) or 'mx 0 0 ')
            call('ZADD', KEYS[4], 0, lease)
        end
    end
end
return 1
