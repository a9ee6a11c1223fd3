-- Lets a partition follow the registry to its new id. KEYS: meta. ARGV: the partition's id so far, new id, era.
local head = redis.call('HMGET', KEYS[1], 'id', 'era')
if head[1] == ARGV[1] and head[2] == ARGV[3] then
    redis.call('HSET', KEYS[1], 'id', ARGV[2])
end
return 1
