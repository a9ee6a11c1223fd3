-- Attaches a lease that the first partition has said to live. KEYS: meta, attached leases. ARGV: registry id, lease, how often
-- leases had ended here before the first partition was asked.
-- Gives 0, and does nothing, when one has ended since: it may have been this one.
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then
    return 1
end
if redis.call('HGET', KEYS[1], 'ends') ~= ARGV[3] then
    return 0
end
redis.call('HSET', KEYS[2], ARGV[2], redis.call('HINCRBY', KEYS[1], 'slots', 1))
return 1
