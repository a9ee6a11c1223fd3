-- Lets a partition other than the first join the registry.
-- KEYS: meta. ARGV: birth, '1' to make the partition if there is none, the number of its last disowning
-- (partition_disown.lua) as the caller read it before deleting what was left there, the fields and values of a new
-- partition.
-- Returns 'joined', 'none' if it is not there, or 'foreign' if it is another registry's; and the number of its last
-- disowning. A partition that was disowned since the caller read that number is not made: an older registry may have
-- put sessions into it meanwhile.
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
