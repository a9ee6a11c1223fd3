-- Takes room for more sessions of a partition from what all of them may hold.
-- KEYS: meta of the first partition, quotas. ARGV: birth, partition, its quota, the number of that quota, how much more
-- is wanted, how much all may hold, how many partitions there are.
-- Gives the partition's quota and its number, or nil when all is taken.
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
-- A share of what is left, so that this is rare, and all of it only when little is.
local left = ARGV[6] - sum
local more = math.min(math.max(tonumber(ARGV[5]), math.floor(left / ARGV[7] / 2)), left)
if more <= 0 then
    return false
end
granted, number = text(ARGV[3] + more), text(ARGV[4] + 1)
call('HSET', KEYS[2], field, granted .. ' ' .. number)
return {granted, number}
