-- Removes a partition from a registry that no longer exists. KEYS: meta. ARGV: the birth of that registry, a random
-- number for this disowning.
if redis.call('HGET', KEYS[1], 'birth') == ARGV[1] then
    redis.call('UNLINK', KEYS[1])
    redis.call('HSET', KEYS[1], 'disowned', ARGV[2])
end
return 1
