-- Begins every script but those that make or move a registry: nothing is done for one that is not here any more.
-- KEYS[1] is the meta of the partition, ARGV[1] the registry's id.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then
    return redis.error_reply('REGISTRY another registry, or none, is here')
end
