-- Records the quota that quota_lower returned. KEYS: meta of the first partition, quotas. ARGV: birth, the partition,
-- its quota, the quota's number.
-- Returns the partition's quota in the register, and its number.
local quota, number = string.match(call('HGET', KEYS[2], ARGV[2]) or '0 0', '^(%d+) (%d+)$')
if tonumber(ARGV[4]) >= tonumber(number) then
    call('HSET', KEYS[2], ARGV[2], ARGV[3] .. ' ' .. ARGV[4])
    return {ARGV[3], ARGV[4]}
end
return {quota, number}
