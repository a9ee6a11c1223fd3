-- Makes the registry in its first partition, unless there is one. KEYS: meta. ARGV: the fields and values of a new one.
-- Gives all fields and values of the one that is there.
if redis.call('HEXISTS', KEYS[1], 'id') == 0 then
    redis.call('HSET', KEYS[1], unpack(ARGV))
end
return redis.call('HGETALL', KEYS[1])
