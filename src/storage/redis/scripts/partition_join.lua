-- Lets a partition other than the first join the registry.
-- KEYS: meta. ARGV: birth, '1' when the partition is to be made if there is none, the fields and values of a new one.
-- Gives 'joined', 'none' when it is not there, 'foreign' when it is of another registry.
local found = redis.call('HGET', KEYS[1], 'birth')
if found then
    return found == ARGV[1] and 'joined' or 'foreign'
end
if ARGV[2] ~= '1' then
    return 'none'
end
local time = redis.call('TIME')
local wall = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'time', wall, 'wall', wall)
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 'joined'
