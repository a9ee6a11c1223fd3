-- Forgets a closed lease in its partition. KEYS: meta, closed leases, its set of buckets. ARGV: registry id, lease.
redis.call('UNLINK', KEYS[3])
return redis.call('HDEL', KEYS[2], ARGV[2])
