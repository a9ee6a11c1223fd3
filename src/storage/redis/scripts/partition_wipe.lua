-- Deletes some keys of a partition that is of an era that is over. KEYS: meta, the keys. ARGV: that era.
-- Gives 0, and does nothing, when the partition is of another era by now.
if redis.call('HGET', KEYS[1], 'era') ~= ARGV[1] then
    return 0
end
-- From now on no script takes it for a registry.
redis.call('HDEL', KEYS[1], 'id')
for i = 2, #KEYS do
    redis.call('UNLINK', KEYS[i])
end
return 1
