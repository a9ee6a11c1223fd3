-- Renews the claim on leases, so that no other replica sweeps them. KEYS: meta, claims. ARGV: birth, the duration of
-- the claim in ms, the leases.
call('HDEL', meta, '')
for i = 3, #ARGV do
    call('ZADD', KEYS[2], 'XX', text(now + ARGV[2]), ARGV[i])
end
return 1
