-- Lets a partition other than the first join the registry.
-- KEYS: meta. ARGV: registry id, era, buckets, '1' when it is known to have joined before.
-- Gives 'same', 'fresh' when it was empty and has joined, 'lost' when it is empty and had joined before, 'moved' when it has
-- its sessions under another id of the same era and has yet to follow, 'foreign' when it is of another era.
local head = redis.call('HMGET', KEYS[1], 'id', 'era')
if head[1] == ARGV[1] then
    return 'same'
end
if head[2] then
    return head[2] == ARGV[2] and 'moved' or 'foreign'
end
if ARGV[4] == '1' then
    return 'lost'
end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'era', ARGV[2], 'buckets', ARGV[3], 'end', 0, 'count', 0, 'slots', 0, 'ends', 0)
return 'fresh'
