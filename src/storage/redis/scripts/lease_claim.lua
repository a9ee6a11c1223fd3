-- Goes on having leases that have ended: nobody else sweeps them for so long. KEYS: meta, claims. ARGV: birth, ms, the leases.
call('HDEL', meta, '')
for i = 3, #ARGV do
    call('ZADD', KEYS[2], 'XX', text(now + ARGV[2]), ARGV[i])
end
return 1
