-- Forgets leases that have ended and are swept in every partition. KEYS: meta, ended leases, claims. ARGV: birth, the leases.
-- One that is to be closed once more is left to be handed out again.
for i = 2, #ARGV do
    local known = call('HGET', KEYS[2], ARGV[i])
    if not known or string.sub(known, 1, 1) == 'c' then
        call('ZREM', KEYS[3], ARGV[i])
        call('HDEL', KEYS[2], ARGV[i])
    end
end
return 1
