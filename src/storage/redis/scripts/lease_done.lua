-- Forgets an ended lease: no session is under it. KEYS: meta, ended leases, claims. ARGV: registry id, lease.
redis.call('ZREM', KEYS[3], ARGV[2])
return redis.call('HDEL', KEYS[2], ARGV[2])
