-- Makes the registry in its first partition, unless there is one.
-- KEYS: meta. ARGV: '1' to make it, the fields and values of a new one.
-- Returns all fields and values of the registry that is there, or nothing if there is none.
if redis.call('HEXISTS', KEYS[1], 'birth') == 0 and ARGV[1] == '1' then
    local time = redis.call('TIME')
    local wall = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('HSET', KEYS[1], 'time', wall, 'wall', wall, 'look_wall', wall, 'look_time', wall)
    redis.call('HSET', KEYS[1], unpack(ARGV, 2))
end
return redis.call('HGETALL', KEYS[1])
