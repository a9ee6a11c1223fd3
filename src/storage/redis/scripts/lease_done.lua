-- Deletes the records of leases that have ended and are swept in all partitions.
-- KEYS: meta, ended leases, claims. ARGV: birth, for each lease its id and the number of the mark that it was swept
-- for.
-- If a lease was marked again meanwhile, its record stays, and a look hands the lease out again.
local leases, swept = {}, {}
for i = 2, #ARGV, 2 do
    leases[#leases + 1] = ARGV[i]
end
for i, known in ipairs(call('HMGET', KEYS[2], unpack(leases))) do
    if not known or string.sub(known, 1, 1) == 'c' and string.match(known, '^.. (%d+)') == ARGV[2 * i + 1] then
        swept[#swept + 1] = leases[i]
    end
end
if #swept > 0 then
    call('ZREM', KEYS[3], unpack(swept))
    call('HDEL', KEYS[2], unpack(swept))
end
return 1
