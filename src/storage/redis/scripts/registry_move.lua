-- Gives the registry a new id, so that old cursors are not taken for places in a log that lost changes.
-- KEYS: meta of the first partition. ARGV: old id, new id, field of a partition that was lost or ''.
-- Does nothing when somebody else has moved it already.
if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then
    redis.call('HSET', KEYS[1], 'id', ARGV[2])
    if ARGV[3] ~= '' then
        redis.call('HDEL', KEYS[1], ARGV[3])
    end
end
return 1
