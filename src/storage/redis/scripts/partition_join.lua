-- Makes a partition other than the first one join the registry.
-- KEYS: meta. ARGV: birth, '1' to create the partition if it does not exist, the number of its last disowning
-- (partition_disown.lua) as the caller read it before deleting leftover keys, the fields and values of a new partition.
-- Returns 'joined', 'none' if the partition does not exist, or 'foreign' if it belongs to another registry; and the
-- number of its last disowning. If the partition was disowned since the caller read that number, it is not created,
-- because an older registry may have put sessions into it meanwhile.
local found = redis.call('HMGET', KEYS[1], 'birth', 'disowned')
local disowned = found[2] or ''
if found[1] then
    return {found[1] == ARGV[1] and 'joined' or 'foreign', disowned}
end
if ARGV[2] ~= '1' or disowned ~= ARGV[3] then
    return {'none', disowned}
end
local time = redis.call('TIME')
local wall = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'time', wall, 'wall', wall)
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
return {'joined', disowned}
