-- Renews the claim on leases, so that nobody else sweeps them. KEYS: meta, claims. ARGV: birth, for how many ms, the
-- leases.
call('HDEL', meta, '')
for i = 3, #ARGV do
    call('ZADD', KEYS[2], 'XX', text(now + ARGV[2]), ARGV[i])
end
return 1
