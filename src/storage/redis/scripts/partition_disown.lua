-- Lets go of a partition of a registry that is over. KEYS: meta. ARGV: the partition's birth as the caller knows it is not the registry's.
if redis.call('HGET', KEYS[1], 'birth') == ARGV[1] then
    redis.call('UNLINK', KEYS[1])
end
return 1
