-- Records in the first partition that another partition has joined. KEYS: meta. ARGV: birth, the field of that
-- partition.
call('HSET', meta, ARGV[2], 1)
return 1
