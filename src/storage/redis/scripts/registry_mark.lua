-- Notes in the first partition that another one has joined. KEYS: meta. ARGV: registry id, the field of that partition.
redis.call('HSET', KEYS[1], ARGV[2], 1)
return 1
