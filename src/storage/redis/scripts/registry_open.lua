-- Reads the registry's description in its first partition, after creating the registry if necessary.
-- KEYS: meta. ARGV: '1' to create the registry if there is none, the fields and values of a new one.
-- Returns all fields and values of the existing or new registry, or nothing if there is none.
if redis.call('HEXISTS', KEYS[1], 'birth') == 0 and ARGV[1] == '1' then
    local time = redis.call('TIME')
    local wall = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('HSET', KEYS[1], 'time', wall, 'wall', wall, 'look_wall', wall, 'look_time', wall)
    redis.call('HSET', KEYS[1], unpack(ARGV, 2))
end
return redis.call('HGETALL', KEYS[1])
