-- Forgets leases that have ended and are swept in every partition.
-- KEYS: meta, ended leases, claims. ARGV: birth, for each lease its id and the number of the mark that it was swept
-- for.
-- A lease that was marked again meanwhile stays, and is handed out again.
for i = 2, #ARGV, 2 do
    local known = call('HGET', KEYS[2], ARGV[i])
    if not known or string.sub(known, 1, 1) == 'c' and string.match(known, '^.. (%d+)') == ARGV[i + 1] then
        call('ZREM', KEYS[3], ARGV[i])
        call('HDEL', KEYS[2], ARGV[i])
    end
end
return 1
