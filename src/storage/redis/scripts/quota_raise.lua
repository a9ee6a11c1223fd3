-- Raises a partition's quota in the register, within the limit of all partitions together.
-- KEYS: meta of the first partition, quotas. ARGV: birth, the partition, its quota, the quota's number, by how much to
-- raise it, the session limit of the registry, the number of partitions.
-- Returns the partition's quota and its number, or nil if there is no room left.
local field = ARGV[2]
local granted, number = string.match(call('HGET', KEYS[2], field) or '0 0', '^(%d+) (%d+)$')
if tonumber(ARGV[4]) < tonumber(number) then
    return {granted, number}
end
call('HSET', KEYS[2], field, ARGV[3] .. ' ' .. ARGV[4])
local sum = 0
for _, value in ipairs(call('HVALS', KEYS[2])) do
    sum = sum + string.match(value, '^%d+')
end
-- Grants a share of the remaining room, so that calls of this script are rare. If little is left, grants only what the
-- partition needs.
local left = ARGV[6] - sum
local more = math.min(math.max(tonumber(ARGV[5]), math.floor(left / ARGV[7] / 2)), left)
if more <= 0 then
    return false
end
granted, number = text(ARGV[3] + more), text(ARGV[4] + 1)
call('HSET', KEYS[2], field, granted .. ' ' .. number)
return {granted, number}
