-- Deletes keys that an earlier registry left in a partition. KEYS: meta, the keys.
-- Returns 1. Returns 0, and does nothing, if the partition belongs to a registry now.
if redis.call('HEXISTS', KEYS[1], 'birth') == 1 then
    return 0
end
for i = 2, #KEYS do
    redis.call('UNLINK', KEYS[i])
end
return 1
